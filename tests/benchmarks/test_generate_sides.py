"""What the processes of `xpeft bench generate` do, each alone, and what they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xpeft_benchmarks.generate.engine import GenerateEngineWorker
from xpeft_benchmarks.generate.prompts import cut_prompts
from xpeft_benchmarks.generate.timeline import AnswerWrong, Timeline
from xpeft_benchmarks.generate.transformers import ContinuousFailed, TransformersWorker
from xpeft_benchmarks.texts import TextsInvalid

TEXTS = [" ".join(f"w{(start + word) % 100}" for word in range(1 + start % 9)) for start in range(40)]


def test_an_engine_answers_as_long_as_asked_though_every_token_would_end_it(endless: Path) -> None:
    with GenerateEngineWorker() as worker:
        opened = worker(
            {
                "job": "open",
                "plm": str(endless),
                "bank": "random:N=8,R=4,seed=0",
                "device": "cpu",
                "dtype": "float32",
                "profiles": 2,
                "seed": 0,
                "texts": TEXTS,
                "prompt_tokens": [4, 2, 5],
                "longest": 20,
                "max_batch_tokens": 64,
            }
        )
        measured = worker({"job": "run", "owners": [1, None, 0], "new": [3, 11, 1], "at": [0.0, 0.0, 0.05]})
    assert list(map(len, opened["prompts"])) == [4, 2, 5]
    assert measured["seconds"] >= max(measured["total"][:2])
    assert all(0 < first <= total for first, total in zip(measured["first_token"], measured["total"], strict=True))


@pytest.fixture
def transformers(endless: Path) -> TransformersWorker:
    worker = TransformersWorker()
    prompts = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
    worker({"job": "open", "folder": str(endless), "device": "cpu", "dtype": "float32", "prompts": prompts})
    return worker


def recorded(worker: TransformersWorker) -> list[dict[str, Any]]:
    """What `generate` of its model is called with from now on."""
    calls: list[dict[str, Any]] = []
    original = worker._model.generate

    def generate(**arguments: Any) -> Any:
        calls.append(arguments)
        return original(**arguments)

    worker._model.generate = generate
    return calls


def test_padded_batches_are_padded_on_the_left_and_run_to_their_longest_answer(
    transformers: TransformersWorker,
) -> None:
    calls = recorded(transformers)
    measured = transformers({"job": "padded", "order": [1, 2, 0, 3], "batch": 2, "new": [2, 7, 3, 4], "at": [0.0] * 4})
    assert [call["input_ids"].tolist() for call in calls] == [[[0, 8], [9, 10]], [[0, 5, 6, 7], [11, 12, 13, 14]]]
    assert [call["attention_mask"].tolist() for call in calls] == [[[0, 1], [1, 1]], [[0, 1, 1, 1], [1, 1, 1, 1]]]
    assert [call["generation_config"].max_new_tokens for call in calls] == [7, 4]
    assert measured["batches"] == 2
    assert measured["total"][2] < measured["total"][1] < measured["first_token"][0] == measured["first_token"][3]


def test_a_padded_batch_begins_without_those_who_come_later(transformers: TransformersWorker) -> None:
    calls = recorded(transformers)
    measured = transformers(
        {"job": "padded", "order": [0, 1, 2, 3], "batch": 4, "new": [1] * 4, "at": [0.0, 0.0, 0.5, 0.5]}
    )
    assert [len(call["input_ids"]) for call in calls] == [2, 2]
    assert measured["seconds"] >= 0.5
    assert max(measured["total"]) < measured["seconds"]


def test_continuous_batching_that_breaks_tells_its_own_words(transformers: TransformersWorker) -> None:
    transformers._model = object()
    with pytest.raises(ContinuousFailed, match=r"AttributeError: .*continuous_batching_context_manager"):
        transformers({"job": "continuous", "new": [1] * 4, "at": [0.0] * 4})


def test_the_time_of_a_stretch_goes_from_the_first_arrival_to_the_last_end() -> None:
    now = [100.0]
    line = Timeline([0.0, 2.0], [3, 4], clock=lambda: now[0])
    now[0] = 100.5
    assert (line.until(0), line.until(1)) == (-0.5, 1.5)
    line.started(0)
    line.started(1, 103.0)
    now[0] = 105.0
    line.ended(1, 4)
    line.ended(0, 3, 104.0)
    assert line.measured() == {"seconds": 5.0, "first_token": [0.5, 1.0], "total": [4.0, 3.0]}


@pytest.mark.parametrize("tokens", [2, 4])
def test_an_answer_of_another_length_is_no_measurement(tokens: int) -> None:
    with pytest.raises(AnswerWrong, match=f"request 0 was answered with {tokens} tokens, 3 were asked for"):
        Timeline([0.0], [3]).ended(0, tokens)


def test_prompts_are_cut_from_texts_that_stand_one_behind_the_other() -> None:
    texts = [[1, 2, 3], [], [4], [5, 6]]
    assert cut_prompts(texts, [2, 3, 1, 5]) == [[1, 2], [4, 5, 6], [1], [4, 5, 6, 1, 2]]


def test_prompts_cannot_be_cut_from_texts_without_tokens() -> None:
    with pytest.raises(TextsInvalid, match="none of 2 texts"):
        cut_prompts([[], []], [1])
