"""What attend_cache refuses, whichever implementation runs."""

from __future__ import annotations

import torch
from torch import Tensor

from .steps import PlacedSteps


def check_attend_cache(query: Tensor, keys: Tensor, values: Tensor, steps: PlacedSteps, *, window: int | None) -> None:
    """Raises: ValueError with the shapes, strides or dtypes that do not fit, or the window."""
    if query.ndim != 3 or keys.ndim != 3 or keys.shape != values.shape or query.shape[2] != keys.shape[2]:
        raise ValueError(
            f"query {tuple(query.shape)}, keys {tuple(keys.shape)} and values {tuple(values.shape)} do not fit"
        )
    if query.shape[1] % keys.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads cannot share {keys.shape[1]} heads of keys evenly")
    if not query.dtype == keys.dtype == values.dtype:
        raise ValueError(f"query is {query.dtype}, keys {keys.dtype}, values {values.dtype}: they must be the same")
    for name, states in (("query", query), ("keys", keys), ("values", values)):
        if states.stride(2) != 1:
            raise ValueError(f"{name} has strides {states.stride()}, the last must be 1")
    for name, table, columns in (("pieces", steps.pieces, 7), ("joins", steps.joins, 3)):
        if table.ndim != 2 or table.shape[1] != columns or table.dtype != torch.int32 or not table.is_contiguous():
            raise ValueError(
                f"{name} are {tuple(table.shape)} {table.dtype}, they must be [*, {columns}] torch.int32, contiguous"
            )
    if window is not None and window < 1:
        raise ValueError(f"window is {window}, at least 1 is needed: every token sees itself")
