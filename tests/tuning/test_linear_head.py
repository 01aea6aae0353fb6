from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from xpeft_tuning.linear_head import PENALTIES, choose_penalty, fit_linear_head


def _blobs(rows: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(rows) % 3
    centres = torch.eye(3, 5)
    return centres[targets] + spread * torch.randn(rows, 5, generator=generator), targets


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_the_gradient_of_the_objective_vanishes_at_the_solution(penalty: float) -> None:
    features, targets = _blobs(30, 0.7)
    head = fit_linear_head(features, targets, 3, penalty=penalty)
    weight, bias = head.weight.double().requires_grad_(), head.bias.double().requires_grad_()
    loss = functional.cross_entropy(features.double() @ weight.T + bias, targets)
    torch.autograd.backward(loss + penalty / 30 * weight.square().sum() / 2)
    for part in (weight, bias):
        assert part.grad is not None
        assert part.grad.abs().max() < 1e-6


def test_noise_asks_for_a_large_penalty_and_clean_rows_for_the_smallest() -> None:
    clean, targets = _blobs(60, 0.1)
    noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(3))
    assert choose_penalty(noise, targets, 3, seed=0) >= 10
    assert choose_penalty(clean, targets, 3, seed=0) == min(PENALTIES)


def test_two_rows_are_enough_to_fit_and_too_few_to_choose_a_penalty() -> None:
    features, targets = torch.eye(2), torch.tensor([0, 1])
    penalty = choose_penalty(features, targets, 2, seed=0)
    assert penalty == 1
    assert fit_linear_head(features, targets, 2, penalty=penalty)(features).argmax(1).tolist() == [0, 1]
