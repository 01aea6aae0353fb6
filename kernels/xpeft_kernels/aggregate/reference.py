"""The specification of aggregate_adapters, in PyTorch; what runs on CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..tiles import MIN_ROWS
from .checks import check_aggregate

_LEAST_PIECE = 64
"""Elements of a piece of a bank's row that is worth a look-up of its own."""


def aggregate_adapters_ref(bank: Tensor, masks: Tensor, slots: Tensor, slot_ids: Tensor, *, split: int) -> None:
    """See `aggregate_adapters`.

    How a profile is computed depends on it alone, so that a slot's bits do not depend on who is filled with it.
    Profiles that choose at most half of the bank read only the rows that they choose: one costs a sixth of the product
    with the whole bank (N=100, 50 chosen), sixteen still less than it.
    """
    check_aggregate(bank, masks, slots, slot_ids, split=split)
    adapters, row = bank.shape[1:]
    if masks.dtype != torch.uint8:
        _multiply(bank, masks.float(), slots, slot_ids, split)
        return
    bits = _bits(masks, adapters)
    piece = math.gcd(split, row - split)
    few = bits.sum(-1).amax((1, 2)) * 2 <= adapters
    if bank.dtype != torch.float32 or piece < _LEAST_PIECE:
        few.zero_()
    if few.any():
        _add_up(bank, bits[few], slots, slot_ids[few], split, piece)
    if not few.all():
        _multiply(bank, bits[~few].float(), slots, slot_ids[~few], split, bits[~few].sum(-1).float().reciprocal())


def _add_up(bank: Tensor, bits: Tensor, slots: Tensor, slot_ids: Tensor, split: int, piece: int) -> None:
    """``bits`` ``[P, 2, L, N]``. A row is cut into pieces of one length, so that none belongs to both masks."""
    blocks, adapters, row = bank.shape
    profiles = slot_ids.numel()
    pieces = bank.reshape(-1, piece)
    for side, chosen in enumerate(bits.permute(1, 2, 0, 3)):
        # Block by block: what several profiles choose is still in the cache.
        where = chosen.nonzero()
        first = (where[:, 0] * adapters + where[:, 2]) * (row // piece)
        counts = chosen.sum(-1).flatten()
        starts = counts.cumsum(0) - counts
        scale = counts.float().reciprocal()[:, None]
        for begin in range(split, row, piece) if side else range(0, split, piece):
            total = embedding_bag(first + begin // piece, pieces, starts, mode="sum").mul_(scale)
            total = total.view(blocks, profiles, piece).to(slots.dtype)
            slots[:, :, begin : begin + piece].index_copy_(1, slot_ids, total)


def _multiply(
    bank: Tensor, weights: Tensor, slots: Tensor, slot_ids: Tensor, split: int, scale: Tensor | None = None
) -> None:
    """``weights`` ``[P, 2, L, N]``, ``scale`` ``[P, 2, L]`` float32. Products of 16 rows at least give a row always the
    same bits."""
    blocks, adapters, row = bank.shape
    profiles = slot_ids.numel()
    padded = weights.new_zeros(2, blocks, -(-profiles // MIN_ROWS) * MIN_ROWS, adapters)
    padded[:, :, :profiles] = weights.permute(1, 2, 0, 3)
    for block in range(blocks):
        for side, part in enumerate((slice(0, split), slice(split, row))):
            total = torch.mm(padded[side, block], bank[block, :, part].float())[:profiles]
            if scale is not None:
                total *= scale[:, side, block, None]
            slots[block, :, part].index_copy_(0, slot_ids, total.to(slots.dtype))


def _bits(masks: Tensor, adapters: int) -> Tensor:
    """``[P, 2, L, N]`` bool."""
    shifts = torch.arange(8, dtype=torch.uint8, device=masks.device)
    return ((masks.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :adapters].bool()
