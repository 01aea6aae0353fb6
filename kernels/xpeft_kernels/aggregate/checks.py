"""What aggregate_adapters refuses, whichever implementation runs."""

from __future__ import annotations

import torch
from torch import Tensor


def check_aggregate(bank: Tensor, masks: Tensor, slots: Tensor, slot_ids: Tensor, *, split: int) -> None:
    """Raises: ValueError with the shape or dtype that does not fit."""
    blocks, adapters, row = bank.shape
    profiles = slot_ids.numel()
    width = -(-adapters // 8) if masks.dtype == torch.uint8 else adapters
    if masks.dtype != torch.uint8 and not masks.is_floating_point():
        raise ValueError(f"masks are {masks.dtype}, they must be bits in uint8 or floating-point weights")
    if masks.shape != (profiles, 2, blocks, width):
        raise ValueError(f"masks are {tuple(masks.shape)}, the bank needs {(profiles, 2, blocks, width)}")
    if slots.shape[0] != blocks or slots.shape[2] < row or not 0 < split < row:
        raise ValueError(f"slots {tuple(slots.shape)} or split {split} do not fit a bank {tuple(bank.shape)}")
