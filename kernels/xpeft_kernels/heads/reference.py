"""The specification of apply_heads, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_heads

CHUNK = 16384
"""Label rows at a time: bounds the gathered copies to 2·CHUNK·H floats however many labels a batch has."""


def apply_heads_ref(pooled: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, owners: Tensor) -> Tensor:
    """See `apply_heads`. A dot product a label row: no padding to the widest head, no product of ragged shape."""
    check_heads(pooled, weight, bias, rows, owners)
    features = pooled.float()
    parts = [
        torch.linalg.vecdot(features.index_select(0, owner), weight.index_select(0, row).float())
        + bias.index_select(0, row).float()
        for row, owner in zip(torch.split(rows, CHUNK), torch.split(owners, CHUNK), strict=True)
    ]
    return torch.cat(parts)
