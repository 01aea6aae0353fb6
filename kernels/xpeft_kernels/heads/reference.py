"""The specification of apply_heads, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 16384
"""Label rows at a time: bounds the gathered copies to 2·CHUNK·H floats however many labels a batch has."""


def apply_heads_ref(pooled: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, owners: Tensor) -> Tensor:
    """See `apply_heads`. A dot product a label row: no padding to the widest head, no product of ragged shape."""
    if pooled.shape[1] != weight.shape[1] or weight.shape[0] != bias.shape[0] or rows.shape != owners.shape:
        raise ValueError(
            f"pooled {tuple(pooled.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}, "
            f"rows {tuple(rows.shape)} and owners {tuple(owners.shape)} do not fit"
        )
    features = pooled.float()
    parts = [
        torch.linalg.vecdot(features.index_select(0, owner), weight.index_select(0, row).float())
        + bias.index_select(0, row).float()
        for row, owner in zip(torch.split(rows, CHUNK), torch.split(owners, CHUNK), strict=True)
    ]
    return torch.cat(parts)
