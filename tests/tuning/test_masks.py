from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from xpeft_tuning.masks import gumbel_noise, hard_weights, soft_weights, top_k


def _logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return gumbel_noise(shape, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("adapters", "k"), [(1, 1), (7, 1), (7, 3), (7, 7), (100, 50)])
def test_the_k_largest_of_every_row_are_chosen_and_no_other(adapters: int, k: int) -> None:
    logits = _logits(2, 5, adapters)
    chosen = top_k(logits, k)
    assert chosen.sum(-1).eq(k).all()
    for row, mask in zip(logits.view(-1, adapters), chosen.view(-1, adapters), strict=True):
        assert set(row[mask].tolist()) == set(sorted(row.tolist())[adapters - k :])


def test_of_equal_logits_the_first_are_chosen() -> None:
    assert top_k(torch.tensor([1.0, 2.0, 2.0, 2.0, 1.0]), 2).tolist() == [False, True, True, False, False]
    assert top_k(torch.zeros(3, 40), 3).nonzero()[:, 1].tolist() == [0, 1, 2] * 3


def test_a_hard_row_is_exactly_k_hot_over_k() -> None:
    weights = hard_weights(_logits(2, 6, 11).float(), 4)
    assert torch.equal(weights, top_k(weights, 4) / 4)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_gradient_of_a_hard_choice_is_that_of_the_softmax_at_its_temperature(temperature: float) -> None:
    upstream = _logits(3, 9, seed=1)
    hard, soft = _logits(3, 9).requires_grad_(), _logits(3, 9).requires_grad_()
    torch.autograd.backward(hard_weights(hard, 2, temperature=temperature), upstream)
    torch.autograd.backward((soft / temperature).softmax(-1), upstream)
    assert hard.grad is not None
    torch.testing.assert_close(hard.grad, soft.grad, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_temperature_changes_no_hard_choice_but_every_soft_weight(temperature: float) -> None:
    logits = _logits(3, 9)
    torch.testing.assert_close(hard_weights(logits, 2, temperature=temperature), hard_weights(logits, 2))
    found = soft_weights(logits, temperature=temperature)
    torch.testing.assert_close(found, (logits / temperature).softmax(-1), rtol=0, atol=0)
    assert (found != soft_weights(logits)).all()


def test_each_profile_has_a_temperature_of_its_own() -> None:
    logits = _logits(3, 2, 4, 9)
    together = soft_weights(logits, temperature=torch.tensor([0.5, 1.0, 2.0]).double().view(3, 1, 1, 1))
    for one, row, temperature in zip(together, logits, (0.5, 1.0, 2.0), strict=True):
        assert torch.equal(one, soft_weights(row, temperature=temperature))


def test_soft_rows_sum_to_one_and_have_the_gradient_of_finite_differences() -> None:
    logits = _logits(2, 3, 6).requires_grad_()
    torch.testing.assert_close(soft_weights(logits).sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(soft_weights, (logits,))


def test_noise_is_decided_by_the_generator_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = gumbel_noise((4, 5), generator), gumbel_noise((4, 5), generator)
    assert torch.equal(first, _noise(4, 5, seed=3))
    assert not torch.equal(first, second)
    assert (first.dtype, first.device.type) == (torch.float32, "cpu")


def test_noise_has_the_mean_and_variance_of_gumbels_distribution() -> None:
    """Within three standard errors; the distribution's kurtosis is 5.4."""
    draws = 200_000
    noise, variance = _noise(draws).double(), math.pi**2 / 6
    assert noise.mean().item() == pytest.approx(0.577216, abs=3 * math.sqrt(variance / draws))
    assert noise.var().item() == pytest.approx(variance, abs=3 * variance * math.sqrt(4.4 / draws))
    share_below = (noise < 1).double().mean().item()
    assert share_below == pytest.approx(math.exp(-math.exp(-1)), abs=3 * math.sqrt(0.25 / draws))


def test_the_largest_of_logits_with_noise_is_a_draw_from_their_softmax() -> None:
    draws, logits = 40_000, _logits(6).float()
    share = top_k(logits + _noise(draws, 6), 1).double().mean(0)
    wanted = logits.double().softmax(0)
    assert ((share - wanted).abs() < 3 * (wanted * (1 - wanted) / draws).sqrt()).all()


def test_the_k_largest_of_logits_with_noise_are_k_draws_without_putting_back() -> None:
    draws, logits = 40_000, _logits(5).float()
    chosen = top_k(logits + _noise(draws, 5), 2)
    p = logits.double().softmax(0).tolist()
    for one, other in combinations(range(5), 2):
        wanted = p[one] * p[other] * (1 / (1 - p[one]) + 1 / (1 - p[other]))
        share = (chosen[:, one] & chosen[:, other]).double().mean().item()
        assert share == pytest.approx(wanted, abs=3.5 * math.sqrt(wanted * (1 - wanted) / draws))
