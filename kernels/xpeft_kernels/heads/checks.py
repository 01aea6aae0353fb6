"""What apply_heads refuses, whichever implementation runs."""

from __future__ import annotations

from torch import Tensor


def check_heads(pooled: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, owners: Tensor) -> None:
    """Raises: ValueError with the shapes if they do not fit."""
    if pooled.shape[1] != weight.shape[1] or weight.shape[0] != bias.shape[0] or rows.shape != owners.shape:
        raise ValueError(
            f"pooled {tuple(pooled.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}, "
            f"rows {tuple(rows.shape)} and owners {tuple(owners.shape)} do not fit"
        )
