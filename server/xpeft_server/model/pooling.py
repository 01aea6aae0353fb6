"""A sequence's token rows to one vector."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .packing import PackedBatch

Pooling = Literal["mean", "cls", "last"]


def pool(hidden: Tensor, batch: PackedBatch, pooling: Pooling) -> Tensor:
    """Mean of all real tokens (specials included), the first token, or the last.

    Args:
        hidden: ``[T, H]`` last hidden states of the packed rows.
    Returns: ``[Q, H]`` float32; a sequence's vector is added up row by row, whatever else is in the batch.
    """
    if pooling == "cls":
        return hidden.index_select(0, batch.starts).float()
    if pooling == "last":
        return hidden.index_select(0, batch.ends - 1).float()
    rows = hidden[: batch.owners.numel()].float()
    total = rows.new_zeros(batch.sequences, hidden.shape[1]).index_add(0, batch.owners, rows)
    return total / (batch.ends - batch.starts)[:, None]
