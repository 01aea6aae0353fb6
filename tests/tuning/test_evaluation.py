from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm
from xpeft_server.model.slots import SlotAdapters, SlotBuffers, SlotFill
from xpeft_tuning.dataset import Example
from xpeft_tuning.evaluation import Evaluator, Scored, score_logits
from xpeft_tuning.labelled_texts import LabelledTexts


def _texts(plm: Plm, rows: int = 10, labels: tuple[str, ...] = ("a", "b")) -> LabelledTexts:
    examples = [Example(" ".join(["w5"] * (number + 1)), labels[number % len(labels)]) for number in range(rows)]
    return LabelledTexts(plm, examples, labels, completions=False)


def _profile(bank: Bank, **fields: object) -> Profile:
    masks = np.eye(bank.blocks, bank.adapters, dtype=bool)
    return Profile(bank=bank.fingerprint, mask_a=masks, mask_b=masks, **fields)  # type: ignore[arg-type]


def _always(bank: Bank, *logits: float) -> Profile:
    """The same logits for every text."""
    labels = tuple("abcdefgh"[: len(logits)])
    weight = np.zeros((len(logits), bank.hidden), np.float32)
    return _profile(bank, head_weight=weight, head_bias=np.array(logits, np.float32), labels=labels)


def _random(bank: Bank, classes: int, seed: int) -> Profile:
    rng = np.random.default_rng(seed)
    masks = rng.random((2, bank.blocks, bank.adapters)).argsort(-1) < 3
    return Profile(
        bank=bank.fingerprint,
        mask_a=masks[0],
        mask_b=masks[1],
        head_weight=rng.normal(0, 1, (classes, bank.hidden)).astype(np.float32),
        labels=tuple("abcdefgh"[:classes]),
    )


def test_a_score_is_the_share_of_right_answers_and_the_mean_cross_entropy() -> None:
    score = score_logits(torch.tensor([[1.0, 1.0], [0.0, 5.0]]), torch.tensor([1, 1]))
    assert score.accuracy == 0.5
    assert score.loss == pytest.approx((math.log(2) + math.log1p(math.exp(-5))) / 2)
    assert score.rows == 2


def test_of_two_labels_correlation_is_matthews_and_of_more_there_is_none() -> None:
    """Matthews (1975): (TP·TN - FP·FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)), here of 3, 2, 1 and 1 texts."""
    answers, targets = torch.tensor([1, 1, 1, 0, 0, 1, 0]), torch.tensor([1, 1, 1, 0, 0, 0, 1])
    logits = torch.nn.functional.one_hot(answers, 2).float()
    assert score_logits(logits, targets).correlation == pytest.approx((3 * 2 - 1) / math.sqrt(4 * 4 * 3 * 3))
    assert score_logits(logits, torch.ones(7, dtype=torch.int64)).correlation is None
    assert score_logits(torch.nn.functional.one_hot(answers, 3).float(), targets).correlation is None


def test_of_numbers_a_score_is_the_squared_error_and_pearsons_correlation() -> None:
    rng = np.random.default_rng(0)
    values, wanted = rng.normal(size=(2, 20)).astype(np.float32)
    score = score_logits(torch.from_numpy(values)[:, None], torch.from_numpy(wanted))
    assert score.loss == pytest.approx(np.mean((values - wanted) ** 2), rel=1e-5)
    assert score.correlation == pytest.approx(np.corrcoef(values, wanted)[0, 1], rel=1e-5)
    assert (score.accuracy, score.rows) == (None, 20)


@pytest.mark.parametrize("constant", ["values", "labels"])
def test_what_never_changes_correlates_with_nothing(constant: str) -> None:
    same, others = torch.full((7,), 0.1), torch.arange(7.0)
    values, wanted = (same, others) if constant == "values" else (others, same)
    assert score_logits(values[:, None], wanted).correlation is None


@pytest.mark.parametrize("tokens", [4, 30, 4096])
def test_a_head_that_always_says_the_second_label_is_right_where_it_is_the_label(
    plm: Plm, bank: Bank, tokens: int
) -> None:
    evaluator = Evaluator(plm, bank, slots=1, classes=2, tokens=tokens)
    (score,) = evaluator.scores([Scored(_always(bank, 0.0, 2.0), _texts(plm))])
    assert (score.accuracy, score.rows) == (0.5, 10)
    assert score.loss == pytest.approx((math.log1p(math.exp(2)) + math.log1p(math.exp(-2))) / 2, rel=1e-6)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("tokens", [1, 50, 4096])
def test_profiles_are_scored_together_as_they_are_alone_whatever_their_heads(
    plm: Plm, bank: Bank, slots: int, tokens: int
) -> None:
    pairs = [
        Scored(_random(bank, classes, number), _texts(plm, rows, tuple("abcdefgh"[:classes])))
        for number, (classes, rows) in enumerate([(2, 9), (5, 1), (3, 4), (2, 12), (8, 3), (1, 2), (4, 6)])
    ]
    together = Evaluator(plm, bank, slots=slots, classes=8, tokens=tokens).scores(pairs)
    alone = Evaluator(plm, bank, slots=1, classes=8, tokens=4096)
    assert together == [alone.scores([pair])[0] for pair in pairs]
    assert [score.rows for score in together] == [len(pair.texts) for pair in pairs]


def test_nothing_is_scored_where_there_is_nothing(plm: Plm, bank: Bank) -> None:
    assert Evaluator(plm, bank, slots=2, classes=2, tokens=9).scores([]) == []


def test_a_shared_head_is_the_banks_beside_own_ones(plm: Plm, bank: Bank) -> None:
    always_first = SharedHead(torch.zeros(2, bank.hidden), torch.tensor([9.0, 0.0]), ("a", "b"))
    bank = replace(bank, heads={"first": always_first})
    texts = LabelledTexts(plm, [Example("w1", "a"), Example("w2", "a")], ("a", "b"), completions=False)
    pairs = [Scored(_always(bank, 0.0, 1.0), texts), Scored(_profile(bank, shared_head="first"), texts)]
    for order in (pairs, pairs[::-1]):
        accuracies = [score.accuracy for score in Evaluator(plm, bank, slots=2, classes=2, tokens=99).scores(order)]
        assert accuracies == [float(pair.profile.shared_head is not None) for pair in order]


@pytest.mark.parametrize("tokens", [1, 8, 4096])
def test_of_completions_the_loss_is_that_of_a_token_given_what_stands_before(decoder: Plm, tokens: int) -> None:
    bank = open_bank("random:N=8,R=8,seed=1,std=0.3", decoder.facts)
    rows = [Example("w1 w2 w3", "w4 w5"), Example("w6", "w7"), Example("w8 w9", "w1 w1 w1 w1")]
    texts = LabelledTexts(decoder, rows, (), completions=True)
    few = LabelledTexts(decoder, rows[:1], (), completions=True)
    profiles = [replace(_random(bank, 2, seed), head_weight=None, head_bias=None, labels=None) for seed in (0, 1)]
    pairs = [Scored(profiles[0], texts), Scored(profiles[1], few), Scored(profiles[1], texts)]
    evaluator = Evaluator(decoder, bank, slots=2, classes=0, tokens=tokens, completes=True)
    scores = evaluator.scores(pairs)
    for bare, some in zip(evaluator.bare_scores([texts, few]), (texts, few), strict=True):
        assert bare is not None
        assert bare.loss == pytest.approx(_loss_by_token(decoder, bank, None, some), rel=1e-5)
    for score, (profile, some) in zip(scores, pairs, strict=True):
        assert score.loss == pytest.approx(_loss_by_token(decoder, bank, profile, some), rel=1e-5)
        assert (score.rows, score.accuracy, score.correlation) == (len(some), None, None)
    assert scores[0].loss != pytest.approx(scores[2].loss, rel=1e-3)


def _loss_by_token(decoder: Plm, bank: Bank, profile: Profile | None, texts: LabelledTexts) -> float:
    """Mean over the texts of each completion's mean, a text and a token at a time; the bare PLM's without profile."""
    assert decoder.vocabulary_head is not None
    buffers = SlotBuffers(bank, slots=1, head_rows=0, device=torch.device("cpu"), dtype=torch.float32)
    if profile is not None:
        buffers.fill([SlotFill(0, profile, np.empty(0, np.int64))])
    means = []
    for text, prompt in zip(texts.texts, texts.targets.tolist(), strict=True):
        batch = pack([text], [0])
        assert batch.tiles is not None
        adapters = SlotAdapters(buffers.adapters, batch.tiles, buffers.form)
        hidden = decoder.forward(batch, None if profile is None else adapters)
        chances = decoder.vocabulary_head(hidden).log_softmax(-1)
        means.append(np.mean([-chances[place - 1, text.ids[place]].item() for place in range(prompt, len(text))]))
    return float(np.mean(means))
