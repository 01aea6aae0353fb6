"""Pooling: a sequence's token rows to one vector."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xpeft_kernels import mean_rows

from .banks.bank import Pooling
from .batches.packing import PackedBatch
from .graphs.placed_batch import PlacedBatch
from .lanes import Mark


class Pooled(NamedTuple):
    """``[Q, H]`` float32, and when the device began to compute them."""

    vectors: Tensor
    began: Mark


def pool(hidden: Tensor, batch: PackedBatch | PlacedBatch, pooling: Pooling) -> Tensor:
    """Mean of all real tokens (specials included), the first token, or the last.

    Args:
        hidden: ``[T, H]`` last hidden states of the packed rows.
    Returns: ``[Q, H]`` float32; a sequence's vector is added up row by row, whatever else is in the batch.
    """
    if pooling == "cls":
        return hidden.index_select(0, batch.starts).float()
    if pooling == "last":
        return hidden.index_select(0, batch.ends - 1).float()
    if isinstance(batch, PlacedBatch) or (hidden.device.type == "cuda" and not hidden.requires_grad):
        return mean_rows(hidden, batch.starts, batch.ends)
    rows = hidden[: batch.owners.numel()].float()
    total = rows.new_zeros(batch.sequences, hidden.shape[1]).index_add(0, batch.owners, rows)
    return total / (batch.ends - batch.starts)[:, None]


def pool_padded(hidden: Tensor, live: Tensor, pooling: Pooling) -> Tensor:
    """`pool` where every sequence is padded to S tokens.

    Args:
        hidden: ``[Q, S, H]``; live: ``[Q]`` int64, tokens of each sequence, 0 counts as 1.
    Returns: ``[Q, H]`` float32.
    """
    if pooling == "cls":
        return hidden[:, 0].float()
    count = live.clamp_min(1)[:, None]
    if pooling == "last":
        last = (count - 1)[:, None].expand(-1, 1, hidden.shape[2])
        return hidden.gather(1, last)[:, 0].float()
    real = torch.arange(hidden.shape[1], device=live.device) < count
    return (hidden.float() * real[..., None]).sum(dim=1) / count
