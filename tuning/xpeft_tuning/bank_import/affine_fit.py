"""Least squares of one set of rows on another, from sums that any number of batches add to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-8
"""On the inputs' covariance, as a share of its mean diagonal: settles directions that the rows never show."""


class AffineMap(NamedTuple):
    """y ≈ x · weight + bias; ``[H, K]`` and ``[K]``, float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """``[T, H]`` → ``[T, K]``."""
        return inputs @ self.weight + self.bias


class AffineFit:
    """Sums over rows x ``[T, H]`` and y ``[T, K]``, in float64."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self._rows = 0
        self._gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self._cross = torch.zeros(inputs + 1, outputs, dtype=torch.float64)

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Rows ``[T, H]`` and ``[T, K]``, float64."""
        extended = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        self._rows += len(inputs)
        self._gram.addmm_(extended.T, extended)
        self._cross.addmm_(extended.T, outputs)

    def solve(self) -> AffineMap:
        """The map with the least mean square error.

        Semantics: W = (C_xx + λ I)⁻¹ C_xy, b = mean(y) - mean(x) W; C: covariances, λ = RIDGE · trace(C_xx) / H.
        """
        mean_x, mean_y = self._gram[-1, :-1] / self._rows, self._cross[-1] / self._rows
        covariance = self._gram[:-1, :-1] / self._rows - torch.outer(mean_x, mean_x)
        cross = self._cross[:-1] / self._rows - torch.outer(mean_x, mean_y)
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float64).tiny)
        weight = torch.linalg.solve(covariance, cross)
        return AffineMap(weight, mean_y - mean_x @ weight)


class ExplainedVariance:
    """Share of the variance of rows that estimates of them explain: 1 - Σ‖y - ŷ‖² / Σ‖y - mean(y)‖²."""

    def __init__(self, width: int) -> None:
        self._rows = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)
        self._errors = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor, estimates: Tensor) -> None:
        """Rows ``[T, K]``, float64."""
        self._rows += len(values)
        self._sum += values.sum(dim=0)
        self._squares += values.square().sum()
        self._errors += (values - estimates).square().sum()

    def share(self) -> float:
        """At most 1, any number below; 1 where nothing varies and no estimate errs."""
        total = self._squares - self._sum.square().sum() / self._rows
        return 1.0 if self._errors == 0 else float(1 - self._errors / total)
