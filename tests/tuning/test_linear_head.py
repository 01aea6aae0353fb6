from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from xpeft_tuning.linear_head import FEWEST, PENALTIES, LinearHead, choose_penalty, fit_linear_head

ZERO = LinearHead.zero(3, 5)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _blobs(rows: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.arange(rows) % 3
    return torch.eye(3, 5)[targets] + spread * _normal(rows, 5), targets


@pytest.mark.parametrize("drawn_to", [ZERO, LinearHead(_normal(3, 5, seed=1), _normal(3, seed=2))])
@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_the_gradient_of_the_objective_vanishes_at_the_solution(penalty: float, drawn_to: LinearHead) -> None:
    features, targets = _blobs(30, 0.7)
    head = fit_linear_head(features, targets, drawn_to, penalty=penalty)
    weight, bias = head.weight.double().requires_grad_(), head.bias.double().requires_grad_()
    loss = functional.cross_entropy(features.double() @ weight.T + bias, targets)
    torch.autograd.backward(loss + penalty / 30 * (weight - drawn_to.weight).square().sum() / 2)
    for part in (weight, bias):
        assert part.grad is not None
        assert part.grad.abs().max() < 1e-6


@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_of_numbers_it_is_ridge_regression(penalty: float) -> None:
    features, targets, centre = _normal(40, 5), 3 * _normal(40, seed=1) + 7, _normal(1, 5, seed=2)
    head = fit_linear_head(features, targets, LinearHead(centre, torch.zeros(1)), penalty=penalty)
    inputs = (features - features.mean(0)).double()
    away = (targets - targets.mean()).double() - inputs @ centre[0].double()
    wanted = centre[0] + torch.linalg.solve(inputs.T @ inputs + penalty * torch.eye(5).double(), inputs.T @ away)
    torch.testing.assert_close(head.weight[0], wanted.float(), rtol=1e-5, atol=1e-5)
    bias = targets.double().mean() - features.double().mean(0) @ wanted
    torch.testing.assert_close(head.bias[0], bias.float(), rtol=1e-5, atol=1e-5)


def test_a_huge_penalty_leaves_the_head_where_it_is_drawn_to() -> None:
    features, targets = _blobs(30, 0.7)
    drawn_to = LinearHead(_normal(3, 5, seed=1), torch.zeros(3))
    torch.testing.assert_close(
        fit_linear_head(features, targets, drawn_to, penalty=1e12).weight, drawn_to.weight, rtol=1e-6, atol=1e-6
    )


def test_noise_asks_for_a_large_penalty_and_clean_rows_for_the_smallest() -> None:
    clean, targets = _blobs(60, 0.1)
    assert choose_penalty(_normal(60, 5, seed=3), targets, ZERO, seed=0) >= 10
    assert choose_penalty(clean, targets, ZERO, seed=0) == min(PENALTIES)


def test_of_numbers_too() -> None:
    features, noise = _normal(60, 5), _normal(60, seed=1)
    zero = LinearHead.zero(1, 5)
    assert choose_penalty(features, noise, zero, seed=0) >= 10
    assert choose_penalty(features, features.sum(1), zero, seed=0) == min(PENALTIES)


def test_rows_that_fit_what_the_head_is_drawn_to_ask_for_the_largest_penalty() -> None:
    drawn_to = LinearHead(4 * _normal(3, 5, seed=1), torch.zeros(3))
    features = _normal(60, 5)
    labels = torch.distributions.Categorical(logits=drawn_to(features))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        targets = labels.sample()
    assert choose_penalty(features, targets, drawn_to, seed=0) >= 10
    assert choose_penalty(features, targets, ZERO, seed=0) < 1


def test_labels_in_a_rhythm_as_long_as_the_folds_are_many_are_in_all_folds() -> None:
    targets = torch.arange(60) % 5
    features = torch.eye(5)[targets] + 0.1 * _normal(60, 5)
    assert choose_penalty(features, targets, LinearHead.zero(5, 5), seed=0) == min(PENALTIES)


def test_two_rows_are_enough_to_fit_and_too_few_to_choose_a_penalty() -> None:
    features, targets = torch.eye(2), torch.tensor([0, 1])
    zero = LinearHead.zero(2, 2)
    penalty = choose_penalty(features, targets, zero, seed=0)
    assert penalty == 1
    assert fit_linear_head(features, targets, zero, penalty=penalty)(features).argmax(1).tolist() == [0, 1]


def test_a_label_that_a_fold_lacks_is_no_trouble() -> None:
    features, targets = _normal(FEWEST, 5), torch.tensor([0] * (FEWEST - 1) + [2])
    assert choose_penalty(features, targets, ZERO, seed=0) in PENALTIES


def test_weights_count_a_row_as_often_as_they_say() -> None:
    features, targets = _normal(40, 5, seed=8), torch.arange(40) % 3
    weights = torch.tensor([2.0, 0.0]).repeat_interleave(20)
    weighted = fit_linear_head(features, targets, ZERO, penalty=1.0, weights=weights)
    alone = fit_linear_head(features[:20], targets[:20], ZERO, penalty=0.5)
    torch.testing.assert_close(weighted.weight, alone.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weighted.bias, alone.bias, rtol=1e-4, atol=1e-5)
