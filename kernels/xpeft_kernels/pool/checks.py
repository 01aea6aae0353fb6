"""What mean_rows refuses, whichever implementation runs."""

from __future__ import annotations

import torch
from torch import Tensor


def check_mean(hidden: Tensor, starts: Tensor, ends: Tensor) -> None:
    """Raises: ValueError with the shapes or dtypes that do not fit."""
    if hidden.ndim != 2 or starts.ndim != 1 or starts.shape != ends.shape:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, starts {tuple(starts.shape)} and ends {tuple(ends.shape)} do not fit"
        )
    if not hidden.is_floating_point() or starts.dtype != torch.int64 or ends.dtype != torch.int64:
        raise ValueError(f"hidden is {hidden.dtype}, starts {starts.dtype}, ends {ends.dtype}: not float, int64, int64")
