from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from xpeft_server.model.plm import Plm
from xpeft_tuning.dataset import Example
from xpeft_tuning.errors import DatasetInvalid
from xpeft_tuning.labelled_texts import LabelledTexts

ROWS = [
    Example("w1 w2 w3", "b"),
    Example(" ".join(["w4"] * 80), "a"),
    Example("w5", "a", text_pair="w6 w7"),
    Example("w8", "b"),
]


def _texts(plm: Plm, rows: Sequence[Example] = tuple(ROWS), labels: tuple[str, ...] = ("a", "b")) -> LabelledTexts:
    return LabelledTexts(plm, rows, labels, completions=False)


def _completions(plm: Plm, *rows: tuple[str, str]) -> LabelledTexts:
    return LabelledTexts(plm, [Example(prompt, answer) for prompt, answer in rows], (), completions=True)


def test_targets_are_places_in_the_labels(plm: Plm) -> None:
    assert _texts(plm).targets.tolist() == [1, 0, 0, 1]


def test_what_is_longer_than_the_model_takes_is_cut_and_counted(plm: Plm) -> None:
    texts = _texts(plm)
    assert texts.cut == 1
    assert [len(text) for text in texts.texts] == [5, 64, 6, 3]


def test_a_pair_has_segments(plm: Plm) -> None:
    assert _texts(plm).texts[2].type_ids.tolist() == [0, 0, 0, 1, 1, 1]


def test_numbers_are_their_own_targets(plm: Plm) -> None:
    targets = _texts(plm, [Example("w1", 0.25), Example("w2", -3.0)], ("value",)).targets
    assert (targets.dtype, targets.tolist()) == (torch.float32, [0.25, -3.0])


def test_no_rows_are_no_texts(plm: Plm) -> None:
    texts = _texts(plm, [], ("a", "b"))
    assert (len(texts), texts.targets.tolist(), texts.cut) == (0, [], 0)
    assert list(texts.within(texts.by_length(), 10)) == []


@pytest.mark.parametrize(
    ("tokens", "runs"),
    [(14, [[3, 0, 2], [1]]), (7, [[3], [0], [2], [1]]), (1, [[3], [0], [2], [1]]), (78, [[3, 0, 2, 1]])],
)
def test_runs_are_within_the_tokens_or_one_text(plm: Plm, tokens: int, runs: list[list[int]]) -> None:
    texts = _texts(plm)
    assert [run.tolist() for run in texts.within(texts.by_length(), tokens)] == runs


def test_a_text_without_tokens_is_refused(decoder: Plm) -> None:
    with pytest.raises(DatasetInvalid, match="'  ' has no tokens"):
        _texts(decoder, [Example("w1", "a"), Example("  ", "b")])
    with pytest.raises(DatasetInvalid, match="' ' has no tokens"):
        _completions(decoder, ("w1", " "))


def test_a_completion_stands_behind_its_prompt_and_ends_the_text(decoder: Plm) -> None:
    texts = _completions(decoder, ("w1 w2 w3", "w4"), ("w5", "w6 w7"))
    assert [text.ids.tolist() for text in texts.texts] == [[3, 4, 5, 6, 1], [7, 8, 9, 1]]
    assert texts.targets.tolist() == [3, 1]
    assert texts.cut == 0


@pytest.mark.parametrize(
    ("prompt", "answer", "kept"),
    [
        (40, 23, (40, 24)),
        (41, 23, (40, 24)),
        (200, 3, (60, 4)),
        (40, 200, (32, 32)),
        (10, 200, (10, 54)),
        (90, 90, (32, 32)),
    ],
)
def test_what_is_too_long_loses_the_answers_end_and_the_prompts_beginning(
    decoder: Plm, prompt: int, answer: int, kept: tuple[int, int]
) -> None:
    texts = _completions(decoder, (" ".join(["w1"] * (prompt - 1) + ["w2"]), " ".join(["w3"] * answer)))
    (text,), (given,) = texts.texts, texts.targets.tolist()
    assert (given, len(text) - given) == kept
    assert text.ids[given - 1 : given + 1].tolist() == [4, 5]
    assert texts.cut == int(prompt + answer + 1 > 64)


def test_a_prompt_that_is_cut_keeps_the_special_tokens_before_it(decoder: Plm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder.tokenizer, "beginning", 2, raising=False)
    words = [f"w{number}" for number in range(90)]
    (text,) = _completions(decoder, (" ".join(words), "w1")).texts
    whole = decoder.tokenizer.encode([(" ".join(words), None)])[0].ids.tolist()
    assert text.ids.tolist()[:-2] == [*whole[:2], *whole[-60:]]


def test_a_completion_ends_with_a_token_at_which_the_server_stops(decoder: Plm) -> None:
    def ids(ends: set[int]) -> list[int]:
        plm = replace(decoder, ends=frozenset(ends))
        return [int(token) for token in _completions(plm, ("w1", "w2")).texts[0].ids]

    words = [3, 4]
    assert ids({1, 7}) == [*words, 1]  # the tokenizer's own
    assert ids({9, 8}) == [*words, 8]
    assert ids(set()) == words
