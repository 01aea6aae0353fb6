from __future__ import annotations

import pytest
import torch

from xpeft_tuning.masks import hard_weights, soft_weights, top_k


def _logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def test_the_gradient_of_a_hard_choice_is_that_of_the_softmax() -> None:
    upstream = _logits(3, 9, seed=1)
    hard, soft = _logits(3, 9).requires_grad_(), _logits(3, 9).requires_grad_()
    torch.autograd.backward(hard_weights(hard, 2), upstream)
    torch.autograd.backward(soft_weights(soft), upstream)
    assert hard.grad is not None
    torch.testing.assert_close(hard.grad, soft.grad, rtol=0, atol=0)


def test_soft_rows_sum_to_one_and_have_the_gradient_of_finite_differences() -> None:
    logits = _logits(2, 3, 6).requires_grad_()
    torch.testing.assert_close(soft_weights(logits).sum(-1), torch.ones(2, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(soft_weights, (logits,))
