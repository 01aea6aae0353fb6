from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from xpeft_server.model.sampling.choice import Draw, choose_tokens
from xpeft_server.model.sampling.rule import SamplingRule
from xpeft_server.model.sampling.uniforms import uniforms

GREEDY = SamplingRule()


def random_logits(rows: int, vocabulary: int, seed: int) -> Tensor:
    """Half of the rows have many equal logits."""
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    logits[::2] = logits[::2].round()
    return logits


def draws_of(rules: Sequence[SamplingRule], vocabulary: int, seed: int = 0) -> list[Draw]:
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 2**63, len(rules)).tolist()
    return [
        Draw(rule, seeds[i], i, rng.choice(vocabulary, min(9, vocabulary), replace=False).astype(np.int64))
        for i, rule in enumerate(rules)
    ]


def ids(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    return choose_tokens(logits, draws).ids.tolist()


def probabilities(logits: Tensor, rule: SamplingRule, seen: Sequence[int] = ()) -> Tensor:
    """``[V]`` float64, as transformers has them; the penalty in float32 as there, the rest in float64."""
    before, row = torch.tensor([seen], dtype=torch.int64), logits[None]
    if rule.repetition_penalty != 1:
        row = RepetitionPenaltyLogitsProcessor(rule.repetition_penalty)(before, row)
    warpers: list[Any] = [TemperatureLogitsWarper(rule.temperature)]
    warpers += [TopKLogitsWarper(rule.top_k)] if rule.top_k else []
    warpers += [TopPLogitsWarper(rule.top_p)] if rule.top_p < 1 else []
    warpers += [MinPLogitsWarper(rule.min_p)] if rule.min_p else []
    found: Tensor = LogitsProcessorList(warpers)(before, row.double())
    return found[0].softmax(-1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_temperature_0_takes_the_likeliest_and_of_equal_ones_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 3, 2, 3], [-5, -5, -5, -7], [0.0, -0.0, -1, 0]])
    assert ids(logits, [Draw(GREEDY, 5, 0)] * 3) == [1, 0, 0]
    assert ids(logits, [Draw(SamplingRule(top_k=1, top_p=0.1, min_p=0.9), 5, 0)] * 3) == [1, 0, 0]


def test_a_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    logits = torch.tensor([[4.0, 3, -1], [-1, -1.5, -9]]).repeat(2, 1)
    rules = [SamplingRule(repetition_penalty=penalty) for penalty in (1.5, 1.4, 1.3, 1.6)]
    before = logits.clone()
    assert ids(logits, [Draw(rule, 0, 0, np.array([0])) for rule in rules]) == [1, 0, 0, 1]
    assert torch.equal(logits, before)


def test_a_penalty_leaves_ids_beyond_the_logits_and_what_is_ruled_out_alone() -> None:
    logits = torch.tensor([[4.0, -torch.inf, 3], [4.0, -torch.inf, 3]])
    draw = Draw(SamplingRule(repetition_penalty=1e-30), 0, 0, np.array([1, 2, 3, 900]))
    assert ids(logits, [draw, Draw(GREEDY, 0, 0)]) == [2, 0]
    assert ids(logits[:1], [Draw(SamplingRule(repetition_penalty=1e38), 0, 0, np.array([0, 2]))]) == [0]


def test_a_penalty_never_makes_a_row_mean_nothing() -> None:
    logits = torch.tensor([[3e38, 1.0, -3e38, 0.0]])
    for penalty in (1e-300, 1e-30, 1e30, 1e300):
        for temperature in (0, 1):
            rule = SamplingRule(repetition_penalty=penalty, temperature=temperature)
            assert ids(logits, [Draw(rule, 0, 0, np.array([0, 1, 2, 3]))])[0] in (0, 1, 3)


def test_a_row_that_means_nothing_has_no_token_and_harms_no_other() -> None:
    good = torch.tensor([1.0, -torch.inf, 2, 0])
    nan, plus, nothing = good.clone(), good.clone(), torch.full((4,), -torch.inf)
    nan[3], plus[0] = torch.nan, torch.inf
    logits = torch.stack([good, nan, plus, nothing, good])
    for rule in (
        SamplingRule(logprobs=2),
        SamplingRule(temperature=1, logprobs=2),
        SamplingRule(temperature=1, top_k=3, top_p=0.9, min_p=0.01, repetition_penalty=1.1, logprobs=2),
    ):
        draws = [Draw(rule, 11, 5, np.array([0, 3]))] * 5
        found = choose_tokens(logits, draws)
        (alone,) = ids(good[None], draws[:1])
        assert found.ids.tolist() == [alone, -1, -1, -1, alone]
        assert alone in (0, 2)
        assert [each is None for each in found.logprobs] == [False, True, True, True, False]


@pytest.mark.parametrize(
    "rule",
    [
        SamplingRule(temperature=1.0),
        SamplingRule(temperature=0.6, repetition_penalty=1.3),
        SamplingRule(temperature=1.4, top_k=7),
        SamplingRule(temperature=1.1, top_p=0.83),
        SamplingRule(temperature=2.0, min_p=0.04),
        SamplingRule(temperature=1.7, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=0.8),
    ],
)
def test_a_draw_inverts_the_distribution_in_the_order_of_the_vocabulary(rule: SamplingRule) -> None:
    logits = torch.randn(200, generator=torch.Generator().manual_seed(3)) * 2
    seen = np.arange(0, 200, 5)
    up_to = probabilities(logits, rule, seen.tolist()).cumsum(-1)
    steps = 2000
    numbers = torch.from_numpy(uniforms([9] * steps, range(steps)))
    assert float((up_to[None] - numbers[:, None]).abs().min()) > 1e-9
    expected = torch.searchsorted(up_to, numbers, right=True)
    found = ids(logits.expand(steps, -1).contiguous(), [Draw(rule, 9, step, seen) for step in range(steps)])
    assert found == expected.tolist()
    assert len(set(found)) > 3


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (1 - 2**-53, 3)])
@pytest.mark.parametrize("rule", [SamplingRule(temperature=1.0), SamplingRule(temperature=1.0, top_k=2)])
def test_the_ends_of_the_distribution_are_tokens_that_it_has(
    monkeypatch: pytest.MonkeyPatch, rule: SamplingRule, number: float, token: int
) -> None:
    monkeypatch.setattr("xpeft_server.model.sampling.choice.uniforms", lambda *_: np.array([number]))
    logits = torch.tensor([[-torch.inf, 2.0, -torch.inf, 1.0, -torch.inf]])
    assert ids(logits, [Draw(rule, 0, 0)]) == [token]
    for several in (2, 3, 6, 7, 1024):
        equal = torch.tensor([[-torch.inf, *[0.0] * several, -torch.inf]])
        assert ids(equal, [Draw(rule, 0, 0)]) == [1 if number == 0 else several]


def test_tokens_come_as_often_as_they_are_likely() -> None:
    rule = SamplingRule(temperature=0.8, top_k=30, top_p=0.97, min_p=0.01, repetition_penalty=1.2)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(8)) * 2
    seen, steps = np.array([0, 3, 17, 29]), 20_000
    draws = [Draw(rule, 1234, step, seen) for step in range(steps)]
    found = np.bincount(ids(logits.expand(steps, -1).contiguous(), draws), minlength=50)
    expected = probabilities(logits, rule, seen.tolist()).numpy() * steps
    kept = expected > 0
    assert 10 < kept.sum() < 30
    assert found[~kept].sum() == 0
    # 29 degrees of freedom at most: a fair draw exceeds 58.3 one time in a thousand.
    assert ((found[kept] - expected[kept]) ** 2 / expected[kept]).sum() < 58.3


rules = st.builds(
    SamplingRule,
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2, 0.7]),
    temperature=st.sampled_from([0.0, 0.01, 0.8, 1.0, 3.0, 50.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 0.0, 0.3, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.9]),
    logprobs=st.sampled_from([None, None, 0, 1, 5, 20]),
)


def assert_as_alone(logits: Tensor, draws: list[Draw]) -> None:
    together = choose_tokens(logits, draws)
    for i, draw in enumerate(draws):
        alone = choose_tokens(logits[i : i + 1].clone(), [draw])
        assert together.ids[i] == alone.ids[0]
        told, expected = together.logprobs[i], alone.logprobs[0]
        assert (told is None) == (expected is None) == (draw.rule.logprobs is None)
        if told is not None and expected is not None:
            assert told.chosen == expected.chosen
            assert told.ids.tolist() == expected.ids.tolist()
            assert told.logprobs.tolist() == expected.logprobs.tolist()


@given(
    some=st.lists(rules, min_size=64, max_size=64),
    vocabulary=st.sampled_from([1, 7, 300, 1001]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_a_row_has_the_same_token_in_a_mixed_batch_as_alone(
    some: list[SamplingRule], vocabulary: int, seed: int
) -> None:
    assert_as_alone(random_logits(64, vocabulary, seed), draws_of(some, vocabulary, seed))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.usefixtures("two_threads")
def test_so_it_has_on_two_threads_and_in_a_batch_that_is_drawn_in_portions(order: int) -> None:
    some = [
        SamplingRule(temperature=0.9),
        SamplingRule(temperature=0.9, top_p=0.9),
        SamplingRule(temperature=1.5, top_k=60, logprobs=3),
        GREEDY,
        SamplingRule(temperature=1, min_p=0.02, repetition_penalty=1.1),
    ] * 6
    assert_as_alone(random_logits(30, 50_001, 4), draws_of(some[::order], 50_001))


def test_a_sequence_that_is_computed_again_draws_the_same_tokens() -> None:
    rule = SamplingRule(temperature=1.0)
    logits = torch.zeros(8, 1000)
    first = ids(logits, [Draw(rule, 77, step) for step in range(8)])
    again = [ids(logits[:1], [Draw(rule, 77, step)])[0] for step in reversed(range(8))]
    assert again == first[::-1]
    assert len(set(first)) == 8
    assert ids(logits, [Draw(rule, 78, step) for step in range(8)]) != first


def test_a_batch_may_be_empty() -> None:
    found = choose_tokens(torch.zeros(0, 5), [])
    assert found.ids.shape == (0,)
    assert found.logprobs == []


def test_logits_that_do_not_fit_the_draws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 of \[2, V\], not torch.float32 of \[3, 5\]"):
        choose_tokens(torch.zeros(3, 5), [Draw(GREEDY, 0, 0)] * 2)
    with pytest.raises(ValueError, match=r"not torch\.bfloat16 of"):
        choose_tokens(torch.zeros(1, 5, dtype=torch.bfloat16), [Draw(GREEDY, 0, 0)])


def test_a_penalty_needs_to_know_what_was_seen() -> None:
    draws = [Draw(GREEDY, 0, 0), Draw(replace(GREEDY, repetition_penalty=1.5), 0, 0)]
    with pytest.raises(ValueError, match=r"draws\[1\]: seen is None with repetition_penalty 1.5"):
        choose_tokens(torch.zeros(2, 5), draws)
