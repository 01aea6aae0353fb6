"""Adam for many profiles at once, each of them at a step of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8
_NOISE = 4
"""How many times larger than rounding's a gradient is at least, if there is more to it."""


class RowAdam:
    """Adam (arXiv 1412.6980, algorithm 1) where row p of every tensor belongs to profile p.

    PyTorch's optimisers count steps by tensor; here profiles come and go, so every row has its own count and rate.

    Args:
        values: tensors ``[P, …]``, changed in place.
        rates: peak learning rate of each tensor; at 0 it stays as it is.
    """

    def __init__(self, values: Sequence[Tensor], rates: Sequence[float]) -> None:
        self._values = list(values)
        self._rates = list(rates)
        self._mean = [torch.zeros_like(each) for each in values]
        self._square = [torch.zeros_like(each) for each in values]
        self._steps = torch.zeros(values[0].shape[0], device=values[0].device)
        self._noise = [torch.zeros_like(self._steps) for _ in values]

    def begin(self, row: int, *, solved: Sequence[int] = ()) -> None:
        """Forget everything about a row.

        Args:
            solved: the tensors in which the row stands at the optimum of what its first step will see. Of that gradient
                nothing is left but rounding, and Adam, which divides a gradient by its own size, would make a whole
                step of it; so it is only measured, and as long as a gradient is not much larger, it counts as zero.
        """
        self._steps[row] = 0
        for each in (*self._mean, *self._square, *self._noise):
            each[row] = 0
        for place in solved:
            self._noise[place][row] = torch.inf  # not measured yet

    @torch.no_grad()
    def step(self, rows: Tensor, gradients: Sequence[Tensor | None], share: Tensor) -> None:
        """Move some rows.

        Args:
            rows: ``[P']`` int64, distinct.
            gradients: one a tensor, ``[P', …]``; None leaves that tensor as it is.
            share: ``[P']``, of the peak learning rate.
        """
        self._steps[rows] += 1
        steps = self._steps[rows]
        for value, rate, noise, mean, square, found in zip(
            self._values, self._rates, self._noise, self._mean, self._square, gradients, strict=True
        ):
            if found is None or not rate:
                continue
            shape = (-1, *[1] * (found.dim() - 1))
            gradient = found * _beyond(noise, rows, found).view(shape)
            first = torch.lerp(mean[rows], gradient, 1 - _FIRST)
            second = torch.lerp(square[rows], gradient.square(), 1 - _SECOND)
            mean[rows], square[rows] = first, second
            unbiased = first / _known(_FIRST, steps).view(shape)
            spread = (second / _known(_SECOND, steps).view(shape)).sqrt_().add_(_EPSILON)
            value[rows] -= rate * share.view(shape) * unbiased / spread


def _beyond(noise: Tensor, rows: Tensor, gradients: Tensor) -> Tensor:
    """``[P']`` bool: which rows' gradients are more than noise. Args: noise: ``[P]``, set where it was infinite."""
    size = gradients.reshape(len(rows), -1).norm(dim=1).to(noise)
    before = noise[rows]
    noise[rows] = torch.where(before.isinf(), _NOISE * size, before)
    return torch.gt(size, before)


def _known(decay: float, steps: Tensor) -> Tensor:
    """``1 - decay ** steps``, to float32's precision where that is small."""
    return -torch.expm1(steps * math.log(decay))
