"""Which tokens a rule keeps, and how likely each is then: against the processors and warpers of transformers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from xpeft_server.model.sampling.rule import SamplingRule
from xpeft_server.model.sampling.weights import ONE, token_weights

NO_IDS = torch.zeros(1, 0, dtype=torch.int64)


class Reference(NamedTuple):
    """``scores`` ``[V]`` float64, −inf for what is left out; ``clear`` unless rounding decides at a limit's edge."""

    scores: Tensor
    clear: bool


def reference(scores: Tensor, rule: SamplingRule) -> Reference:
    row: Tensor = TemperatureLogitsWarper(float(rule.temperature))(NO_IDS, scores.double()[None])
    clear = True
    if rule.top_k:
        row = TopKLogitsWarper(rule.top_k)(NO_IDS, row)
    if rule.top_p < 1:
        up_to = row.sort().values.softmax(-1).cumsum(-1)[0, :-1]
        clear &= bool(((up_to - (1 - rule.top_p)).abs() > 1e-10).all())
        row = lowest_ids(row, TopPLogitsWarper(rule.top_p)(NO_IDS, row))
    if rule.min_p:
        part = row.softmax(-1) / row.softmax(-1).max() / rule.min_p
        clear &= bool(((part - 1).abs() > 1e-10).logical_or(row == row.max()).all())
        row = MinPLogitsWarper(rule.min_p)(NO_IDS, row)
    return Reference(row[0], clear)


def lowest_ids(before: Tensor, after: Tensor) -> Tensor:
    """Which of equal tokens at the edge transformers keeps is left to its sort: let it be the first ones."""
    edge = after[after > -torch.inf].min()
    equal = (before[0] == edge).nonzero()[:, 0]
    count = int((after == edge).sum())
    after = after.masked_fill(after == edge, -torch.inf)
    after[0, equal[:count]] = edge
    return after


def weights(scores: Tensor, rules: list[SamplingRule]) -> Tensor:
    before = scores.clone()
    found = token_weights(scores, scores.amax(-1), rules)
    assert torch.equal(scores, before)
    assert torch.equal(found, found.round())
    assert bool((found.sum(-1) >= 1).all())
    assert bool((found.sum(-1) < 2 * ONE).all())
    return found


def assert_same(scores: Tensor, rule: SamplingRule, expected: Tensor) -> None:
    (found,) = weights(scores[None], [rule])
    assert torch.allclose(found / found.sum(), expected, rtol=0, atol=1e-11)
    kept = found > 0
    assert not bool((kept & (expected == 0)).any())
    assert not bool((~kept & (expected > 1e-15)).any())


def kept(logits: list[float], **rule: float) -> list[int]:
    (found,) = weights(torch.tensor([logits], dtype=torch.float32), [SamplingRule(**{"temperature": 1, **rule})])
    return found.nonzero()[:, 0].tolist()


tied = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=60)
smooth = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=60)
ruled_out = st.lists(st.sampled_from([0.0, -0.0, 1.5, -torch.inf]), min_size=1, max_size=60)
rules = st.builds(
    SamplingRule,
    temperature=st.sampled_from([1e-3, 0.1, 0.7, 1.0, 3.0, 100.0]),
    top_k=st.integers(0, 70),
    top_p=st.one_of(st.just(1.0), st.floats(0, 1)),
    min_p=st.sampled_from([0.0, 0.03, 0.4, 1.0]),
)


@given(tied | smooth | ruled_out, rules)
@settings(max_examples=1500, deadline=None)
def test_what_is_kept_and_how_likely_it_is_are_those_of_transformers(logits: list[float], rule: SamplingRule) -> None:
    assume(max(logits) > -torch.inf)
    scores = torch.tensor(logits, dtype=torch.float32)
    expected = reference(scores, rule)
    assume(expected.clear)
    assert_same(scores, rule, expected.scores.softmax(-1))


@pytest.mark.parametrize("temperature", [0.01, 0.7, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(
    "limits", [{"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 50}, {"top_k": 5000}, {"top_k": 900, "top_p": 0.3}]
)
def test_so_it_is_over_a_whole_vocabulary(temperature: float, coarse: bool, limits: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(8192, generator=generator) * 3
    scores = scores.bfloat16().float() if coarse else scores
    rule = SamplingRule(temperature=temperature, **limits)
    expected = reference(scores, rule)
    assert expected.clear
    assert_same(scores, rule, expected.scores.softmax(-1))


def test_top_k_keeps_all_that_are_as_likely_as_the_last() -> None:
    assert kept([3, 1, 2, 1, 0], top_k=3) == [0, 1, 2, 3]
    assert kept([3, 1, 2, 1, 0], top_k=2) == [0, 2]
    assert kept([0, 0, 0], top_k=1) == [0, 1, 2]
    assert kept([0.0, -0.0, -1], top_k=1) == [0, 1]
    assert kept([0, -33, -35], top_k=2) == [0, 1]


@pytest.mark.parametrize("top_k", [0, 5, 6, 10**9])
def test_no_top_k_and_one_as_large_as_the_vocabulary_keep_all(top_k: int) -> None:
    assert kept([3, 1, 2, 1, 0], top_k=top_k) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("top_p", "ids"), [(0, [0]), (0.25, [0]), (0.26, [0, 1]), (0.5, [0, 1]), (0.75, [0, 1, 2])])
def test_of_those_as_likely_as_the_last_of_top_p_only_as_many_stay_as_it_needs(top_p: float, ids: list[int]) -> None:
    assert kept([1, 1, 1, 1], top_p=top_p) == ids
    assert int(TopPLogitsWarper(top_p)(NO_IDS, torch.ones(1, 4).double()).isfinite().sum()) == len(ids)


def test_top_p_counts_what_top_k_left() -> None:
    logits = np.log([4.0, 3.0, 2.0, 1.0]).tolist()
    assert kept(logits, top_p=0.6) == [0, 1]
    assert kept(logits, top_k=2, top_p=0.6) == [0, 1]
    assert kept(logits, top_k=2, top_p=0.55) == [0]


def test_the_likeliest_token_stays_whatever_the_limits() -> None:
    assert kept([1, 5, 2], top_k=1, top_p=0, min_p=1) == [1]
    assert kept([1, 5, 2], min_p=7) == [1]
    assert kept([1, 5, 2], temperature=1e-300, top_p=0.5) == [1]
    assert kept([-torch.inf, 3e38, -3e38], temperature=1e-300) == [1]


def test_neighbours_with_other_rules_change_nothing() -> None:
    generator = torch.Generator().manual_seed(6)
    some = [
        SamplingRule(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        for temperature in (0.5, 2)
        for top_k in (0, 40)
        for top_p in (1, 0.8)
        for min_p in (0, 0.02)
    ]
    scores = torch.randn(len(some), 1000, generator=generator).bfloat16().float() * 4
    together = weights(scores, some)
    for row, rule, found in zip(scores, some, together, strict=True):
        assert torch.equal(weights(row[None], [rule])[0], found)


def test_a_row_that_means_nothing_harms_no_other() -> None:
    rule = SamplingRule(temperature=0.9, top_k=3, top_p=0.9, min_p=0.01)
    good = torch.arange(6.0)
    bad = [torch.nan, torch.inf, -torch.inf]
    rows = torch.stack([good, *(torch.full((6,), each) for each in bad), good.where(good != 2, torch.nan), good])
    found = token_weights(rows, rows.amax(-1), [rule] * 6)
    alone = weights(good[None], [rule])[0]
    assert torch.equal(found[0], alone)
    assert torch.equal(found[5], alone)
