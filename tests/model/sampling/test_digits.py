"""What is found without waiting is, in every bit, what sorting finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xpeft_server.model.sampling import weights as sampling_weights
from xpeft_server.model.sampling.choice import Chosen, Draw, choose_tokens
from xpeft_server.model.sampling.digits import DigitOrder
from xpeft_server.model.sampling.order import ordered_bits
from xpeft_server.model.sampling.rule import SamplingRule
from xpeft_server.model.sampling.weights import token_weights

HOSTILE = [0.0, -0.0, 1e-40, -1e-40, 1.5, -3e38, 3e38, -torch.inf, 88.0, 1.0000001]

scores = st.one_of(
    st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=80),
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=80),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=80),
    st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=80),
)
rules = st.builds(
    SamplingRule,
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    temperature=st.sampled_from([0.0, 1e-300, 0.01, 0.8, 1.0, 3.0, 1e30]),
    top_k=st.sampled_from([0, 0, 1, 2, 5, 40, 5000]),
    top_p=st.one_of(st.sampled_from([1.0, 0.0, 0.3, 0.9, 0.999]), st.floats(0, 1)),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.9, 1.0]),
    logprobs=st.sampled_from([None, None, 0, 1, 20]),
)


def by_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that would be waited for."""
    monkeypatch.setattr(sampling_weights, "ORDERS", {"cpu": DigitOrder})


def weights(rows: Tensor, some: list[SamplingRule]) -> tuple[Tensor, Tensor]:
    """By sorting and by digits."""
    sorting = token_weights(rows, rows.amax(-1), some)
    with pytest.MonkeyPatch.context() as monkeypatch:
        by_digits(monkeypatch)
        return sorting, token_weights(rows, rows.amax(-1), some)


def choices(logits: Tensor, draws: list[Draw]) -> tuple[Chosen, Chosen]:
    sorting = choose_tokens(logits, draws)
    with pytest.MonkeyPatch.context() as monkeypatch:
        by_digits(monkeypatch)
        return sorting, choose_tokens(logits, draws)


@given(scores, rules)
@settings(max_examples=1500, deadline=None)
def test_weights_are_those_of_sorting_whatever_the_scores_and_the_rule(row: list[float], rule: SamplingRule) -> None:
    if rule.temperature > 0 and max(row) > -torch.inf:
        sorting, digits = weights(torch.tensor([row], dtype=torch.float32), [rule])
        assert torch.equal(digits, sorting)


@given(some=st.lists(rules, min_size=24, max_size=24), size=st.sampled_from([1, 7, 1001]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_so_are_tokens_and_logprobs_of_rows_with_different_rules(
    some: list[SamplingRule], size: int, seed: int
) -> None:
    logits = torch.randn(len(some), size, generator=torch.Generator().manual_seed(seed)) * 3
    logits[::2] = logits[::2].round()
    draws = [Draw(rule, seed + i, i, np.arange(0, size, 3)) for i, rule in enumerate(some)]
    sorting, digits = choices(logits, draws)
    assert digits.ids.tolist() == sorting.ids.tolist()
    for found, expected in zip(digits.logprobs, sorting.logprobs, strict=True):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert found.chosen == expected.chosen
            assert found.ids.tolist() == expected.ids.tolist()
            assert found.logprobs.tolist() == expected.logprobs.tolist()


@pytest.mark.parametrize("temperature", [0.01, 0.7, 5.0, 100.0])
@pytest.mark.parametrize("coarse", [False, True])
def test_so_it_is_over_a_whole_vocabulary(temperature: float, coarse: bool) -> None:
    limits = [{"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 50}, {"top_k": 5000}, {"top_k": 900, "top_p": 0.3}, {}]
    rows = torch.randn(len(limits), 50_001, generator=torch.Generator().manual_seed(5)) * 3
    rows = rows.bfloat16().float() if coarse else rows
    sorting, digits = weights(rows, [SamplingRule(temperature=temperature, **each) for each in limits])
    assert torch.equal(digits, sorting)


def test_a_row_that_means_nothing_harms_no_other() -> None:
    rule = SamplingRule(temperature=0.9, top_k=3, top_p=0.9, min_p=0.01)
    good = torch.arange(6.0)
    rows = torch.stack([good, *(torch.full((6,), each) for each in (torch.nan, torch.inf, -torch.inf)), good])
    sorting, digits = weights(rows, [rule] * 5)
    assert torch.equal(digits[[0, 4]], sorting[[0, 4]])
    sorting, digits = choices(rows, [Draw(rule, 3, 0)] * 5)
    assert digits.ids.tolist() == sorting.ids.tolist()
    assert digits.ids[[1, 2, 3]].tolist() == [-1, -1, -1]


def test_bits_are_in_the_order_of_the_floats() -> None:
    values = torch.tensor([-torch.inf, -3e38, -1.5, -1e-40, -0.0, 1e-40, 1.0, 1.0000001, 3e38, torch.inf])
    found = ordered_bits(values)
    assert bool((found.diff() > 0).all())
    assert (int(found[4]), int(found[0]) >= -(2**31), int(found[-1]) < 2**31) == (0, True, True)
