"""RowAdam against PyTorch's Adam, one optimiser a row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_tuning.row_adam import RowAdam

ROWS = 5
SHAPES = [(3,), (2, 4), ()]
RATES = [0.1, 0.02, 0.5]


def _values(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


class _Alone:
    """One row and its own optimiser."""

    def __init__(self, values: list[Tensor], row: int) -> None:
        self.values = [each[row].clone().requires_grad_() for each in values]
        groups = [{"params": [value], "lr": rate} for value, rate in zip(self.values, RATES, strict=True)]
        self._optimizer = torch.optim.Adam(groups)

    def step(self, gradients: list[Tensor], share: float) -> None:
        for group, rate in zip(self._optimizer.param_groups, RATES, strict=True):
            group["lr"] = rate * share
        for value, gradient in zip(self.values, gradients, strict=True):
            value.grad = gradient
        self._optimizer.step()


@pytest.mark.parametrize("seed", range(3))
def test_every_row_goes_as_it_would_with_an_adam_of_its_own(seed: int) -> None:
    """Rows take part in some steps, at a share of the rate of their own, and now and then one begins anew."""
    rng = np.random.default_rng(seed)
    values = _values(seed)
    alone = [_Alone(values, row) for row in range(ROWS)]
    optimizer = RowAdam(values, RATES)
    began = 0
    for step in range(60):
        if step % 13 == 12:
            row = int(rng.integers(ROWS))
            optimizer.reset(row)
            alone[row] = _Alone(values, row)
            began += 1
        rows = rng.permutation(ROWS)[: rng.integers(1, ROWS + 1)]
        shares = rng.uniform(0, 1, len(rows))
        gradients = [torch.from_numpy(rng.normal(0, 10.0 ** rng.integers(-4, 3), (len(rows), *s))) for s in SHAPES]
        optimizer.step(torch.from_numpy(rows), gradients, torch.from_numpy(shares))
        for place, row in enumerate(rows):
            alone[row].step([each[place] for each in gradients], shares[place])
    assert began == 4
    for row, each in enumerate(alone):
        for together, single in zip(values, each.values, strict=True):
            torch.testing.assert_close(together[row], single.detach(), rtol=1e-6, atol=1e-6)


def test_the_first_step_is_the_whole_rate_whatever_the_gradients_size() -> None:
    value = torch.zeros(3, 1)
    RowAdam([value], [0.1]).step(torch.arange(3), [torch.tensor([[1e-3], [-2.0], [5e4]])], torch.ones(3))
    torch.testing.assert_close(value[0], torch.tensor([-0.1]), rtol=2e-5, atol=0)  # epsilon is 1e-5 of the gradient
    torch.testing.assert_close(value[1:], torch.tensor([[0.1], [-0.1]]), rtol=1e-6, atol=0)


def test_other_rows_stay_as_they_are() -> None:
    values = _values(0)
    before = [each.clone() for each in values]
    optimizer = RowAdam(values, RATES)
    for _ in range(3):
        optimizer.step(torch.tensor([4, 1]), [torch.ones(2, *shape).double() for shape in SHAPES], torch.ones(2))
    for each, old in zip(values, before, strict=True):
        assert torch.equal(each[[0, 2, 3]], old[[0, 2, 3]])
        assert not torch.equal(each[1], old[1])
        assert not torch.equal(each[4], old[4])


def test_a_tensor_without_a_gradient_or_a_rate_stays_as_it_is() -> None:
    values = _values(0)
    before = [each.clone() for each in values]
    gradients = [None, *(torch.ones(ROWS, *shape).double() for shape in SHAPES[1:])]
    RowAdam(values, [0.1, 0.0, 0.5]).step(torch.arange(ROWS), gradients, torch.ones(ROWS))
    assert [torch.equal(each, old) for each, old in zip(values, before, strict=True)] == [True, True, False]


def test_a_row_that_is_solved_stays_where_it_is_until_there_is_more_than_noise() -> None:
    """Then it goes on as an Adam that has seen zeros: at the whole rate."""
    rng = np.random.default_rng(0)
    values = _values(0)
    start = [each.clone() for each in values]
    alone = _Alone(values, 1)
    optimizer = RowAdam(values, RATES)
    optimizer.reset(1, solved=(0, 2))
    for size in (1e-5, 3e-5, 1e-6, 2e-5):
        gradients = [torch.from_numpy(rng.choice([-size, size], (2, *shape))) for shape in SHAPES]
        optimizer.step(torch.tensor([3, 1]), gradients, torch.ones(2))
        alone.step([0 * gradients[0][1], gradients[1][1], 0 * gradients[2][1]], 1.0)
        assert torch.equal(values[0][1], start[0][1])
        assert torch.equal(values[2][1], start[2][1])
    assert not any(torch.equal(each[3], old[3]) for each, old in zip(values, start, strict=True))
    for _ in range(30):
        gradients = [torch.from_numpy(rng.normal(0, 1e-2, (1, *shape))) for shape in SHAPES]
        optimizer.step(torch.tensor([1]), gradients, torch.ones(1))
        alone.step([each[0] for each in gradients], 1.0)
    for together, single, rate in zip(values, alone.values, RATES, strict=True):
        torch.testing.assert_close(together[1], single.detach(), rtol=1e-6, atol=1e-6 * rate)
    assert (values[0][1] - start[0][1]).abs().max() > 3 * RATES[0]


def test_whoever_begins_where_noise_was_measured_moves_at_once() -> None:
    value = torch.zeros(2, 3)
    optimizer = RowAdam([value], [0.1])
    optimizer.reset(0, solved=(0,))
    optimizer.step(torch.tensor([0]), [torch.full((1, 3), 1e-3)], torch.ones(1))
    optimizer.reset(0)
    optimizer.step(torch.tensor([0]), [torch.full((1, 3), 1e-3)], torch.ones(1))
    torch.testing.assert_close(value, torch.tensor([[-0.1] * 3, [0.0] * 3]), rtol=2e-5, atol=0)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_gradient_that_is_no_number_is_no_noise(broken: float) -> None:
    value = torch.zeros(1, 2)
    optimizer = RowAdam([value], [0.1])
    optimizer.reset(0, solved=(0,))
    optimizer.step(torch.tensor([0]), [torch.tensor([[1e-9, broken]])], torch.ones(1))
    assert not value[0, 1].isfinite()
