"""The specification of mean_rows, in PyTorch; what runs on CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_mean


def mean_rows_ref(hidden: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """See `mean_rows`. ``index_add`` takes rows in their order on CPU only; on a GPU the last bits are left to chance.

    Differentiable in ``hidden``.
    """
    check_mean(hidden, starts, ends)
    count = ends - starts
    owner = torch.repeat_interleave(count)
    first = torch.cumsum(count, 0) - count
    row = torch.arange(owner.numel(), device=hidden.device) + (starts - first).index_select(0, owner)
    rows = hidden.index_select(0, row).float()
    total = rows.new_zeros(starts.numel(), hidden.shape[1]).index_add(0, owner, rows)
    return total / count.clamp(min=1)[:, None]
