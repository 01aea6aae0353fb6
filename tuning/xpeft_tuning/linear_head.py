"""A head on fixed features, and what it is fitted to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class LinearHead(NamedTuple):
    """``weight`` ``[C, H]`` and ``bias`` ``[C]``, float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """``[Q, H]`` → logits ``[Q, C]``."""
        return functional.linear(features, self.weight, self.bias)

    @classmethod
    def zero(cls, classes: int, hidden: int) -> LinearHead:
        return cls(torch.zeros(classes, hidden), torch.zeros(classes))


class HeadRows(NamedTuple):
    """The rows of one profile.

    Args: features: ``[Q, H]``; targets: ``[Q]`` int64 below C, or float32 with C = 1; drawn_to: a head of C labels;
        weights: ``[Q]``, mean 1; draws_bias: whether the bias is drawn to that head's, too.
    """

    features: Tensor
    targets: Tensor
    drawn_to: LinearHead
    weights: Tensor
    draws_bias: bool = False
