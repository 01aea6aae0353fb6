"""Adam for many profiles at once, each with its own step count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_NOISE_FACTOR = 4
"""A gradient counts once it is larger than so many times that of rounding."""


class RowAdam:
    """Adam (arXiv 1412.6980, algorithm 1) where row p of every tensor belongs to profile p.

    PyTorch's optimizers count steps per tensor; here profiles come and go, so each row has its own count and rate.

    Args:
        values: tensors ``[P, …]``, changed in place.
        rates: peak learning rate of each tensor; at 0 it stays as it is.
    """

    def __init__(self, values: Sequence[Tensor], rates: Sequence[float]) -> None:
        self._values = list(values)
        self._rates = list(rates)
        self._first_moments = [torch.zeros_like(each) for each in values]
        self._second_moments = [torch.zeros_like(each) for each in values]
        self._steps = torch.zeros(values[0].shape[0], device=values[0].device)
        self._noise = [torch.zeros_like(self._steps) for _ in values]

    def reset(self, row: int, *, solved: Sequence[int] = ()) -> None:
        """Forget everything about a row.

        Args:
            solved: tensors in which the row starts at the optimum of its first batch. That gradient is rounding alone,
                and Adam, which divides a gradient by its own size, would make a whole step of it. So its size is only
                measured, and gradients count as zero until one is much larger.
        """
        self._steps[row] = 0
        for each in (*self._first_moments, *self._second_moments, *self._noise):
            each[row] = 0
        for place in solved:
            self._noise[place][row] = torch.inf  # not measured yet

    @torch.no_grad()
    def step(self, rows: Tensor, gradients: Sequence[Tensor | None], share: Tensor) -> None:
        """Update some rows.

        Args:
            rows: ``[P']`` int64, distinct.
            gradients: one a tensor, ``[P', …]``; None leaves that tensor as it is.
            share: ``[P']``, of the peak learning rate.
        """
        self._steps[rows] += 1
        steps = self._steps[rows]
        for value, rate, noise, first_moment, second_moment, raw in zip(
            self._values, self._rates, self._noise, self._first_moments, self._second_moments, gradients, strict=True
        ):
            if raw is None or not rate:
                continue
            shape = (-1, *[1] * (raw.dim() - 1))
            gradient = raw * _is_above_noise(noise, rows, raw).view(shape)
            first = torch.lerp(first_moment[rows], gradient, 1 - _BETA1)
            second = torch.lerp(second_moment[rows], gradient.square(), 1 - _BETA2)
            first_moment[rows], second_moment[rows] = first, second
            unbiased = first / _bias_correction(_BETA1, steps).view(shape)
            root = (second / _bias_correction(_BETA2, steps).view(shape)).sqrt_().add_(_EPSILON)
            value[rows] -= rate * share.view(shape) * unbiased / root


def _is_above_noise(noise: Tensor, rows: Tensor, gradients: Tensor) -> Tensor:
    """``[P']`` bool, of the rows' gradients. Args: noise: ``[P]``, set where it was infinite."""
    size = gradients.reshape(len(rows), -1).norm(dim=1).to(noise)
    before = noise[rows]
    noise[rows] = torch.where(before.isinf(), _NOISE_FACTOR * size, before)
    return torch.gt(size, before)


def _bias_correction(beta: float, steps: Tensor) -> Tensor:
    """``1 - beta ** steps``, to float32's precision where that is small."""
    return -torch.expm1(steps * math.log(beta))
