from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from xpeft_profiles import Profile
from xpeft_server.model.bank import Bank, SharedHead
from xpeft_server.model.plm import Plm
from xpeft_tuning.dataset import Example
from xpeft_tuning.evaluation import Evaluator, score_logits
from xpeft_tuning.labelled_texts import LabelledTexts


def _texts(plm: Plm) -> LabelledTexts:
    return LabelledTexts(plm, [Example(f"w{number} w5", "ab"[number % 2]) for number in range(10)], ("a", "b"))


def _profile(bank: Bank, **fields: object) -> Profile:
    masks = np.eye(bank.blocks, bank.adapters, dtype=bool)
    return Profile(bank=bank.fingerprint, mask_a=masks, mask_b=masks, **fields)  # type: ignore[arg-type]


def test_a_score_is_the_share_of_right_answers_and_the_mean_cross_entropy() -> None:
    score = score_logits(torch.tensor([[1.0, 1.0], [0.0, 5.0]]), torch.tensor([1, 1]))
    assert score.accuracy == 0.5
    assert score.loss == pytest.approx((math.log(2) + math.log1p(math.exp(-5))) / 2)
    assert score.rows == 2


@pytest.mark.parametrize("tokens", [4, 4096])
def test_a_head_that_always_says_the_second_label_is_right_where_it_is_the_label(
    plm: Plm, bank: Bank, tokens: int
) -> None:
    weight, bias = np.zeros((2, bank.hidden), np.float32), np.array([0.0, 2.0], np.float32)
    profile = _profile(bank, head_weight=weight, head_bias=bias, labels=("a", "b"))
    score = Evaluator(plm, bank, classes=2, tokens=tokens).score(profile, _texts(plm))
    assert (score.accuracy, score.rows) == (0.5, 10)
    assert score.loss == pytest.approx((math.log1p(math.exp(2)) + math.log1p(math.exp(-2))) / 2, rel=1e-6)


def test_a_shared_head_is_the_banks(plm: Plm, bank: Bank) -> None:
    always_first = SharedHead(torch.zeros(2, bank.hidden), torch.tensor([9.0, 0.0]), ("a", "b"))
    bank = replace(bank, heads={"first": always_first})
    profile = _profile(bank, shared_head="first")
    even = [Example("w1", "a"), Example("w2", "a")]
    assert Evaluator(plm, bank, classes=0, tokens=99).score(profile, LabelledTexts(plm, even, ("a", "b"))).accuracy == 1
