"""The LayerNorm that ends a block of a post-LN model."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Norm(NamedTuple):
    """``weight`` and ``bias`` ``[H]``, ``eps`` under the root."""

    weight: Tensor
    bias: Tensor | None
    eps: float
