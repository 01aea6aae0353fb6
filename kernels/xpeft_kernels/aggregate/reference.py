"""The specification of aggregate_adapters, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tiles import MIN_ROWS
from .checks import check_aggregate


def aggregate_adapters_ref(bank: Tensor, masks: Tensor, slots: Tensor, slot_ids: Tensor, *, split: int) -> None:
    """See `aggregate_adapters`. Rows are padded to 16, so that a slot's bits do not depend on who is filled with it."""
    check_aggregate(bank, masks, slots, slot_ids, split=split)
    blocks, adapters, row = bank.shape
    profiles = slot_ids.numel()
    bits, scale = _weights(masks, adapters)
    rows = -(-profiles // MIN_ROWS) * MIN_ROWS
    weights = bits.new_zeros(2, blocks, rows, adapters)
    weights[:, :, :profiles] = bits.permute(1, 2, 0, 3)
    for block in range(blocks):
        for side, part in enumerate((slice(0, split), slice(split, row))):
            total = torch.mm(weights[side, block], bank[block, :, part].float())[:profiles]
            slots[block, :, part].index_copy_(0, slot_ids, (total * scale[:, side, block, None]).to(slots.dtype))


def _weights(masks: Tensor, adapters: int) -> tuple[Tensor, Tensor]:
    """Unscaled float32 weights ``[P, 2, L, N]`` and the factor ``[P, 2, L]`` that goes on the sum."""
    if masks.dtype != torch.uint8:
        weights = masks.float()
        return weights, torch.ones_like(weights[..., 0])
    shifts = torch.arange(8, dtype=torch.uint8, device=masks.device)
    bits = ((masks.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :adapters].float()
    return bits, bits.sum(-1).reciprocal()
