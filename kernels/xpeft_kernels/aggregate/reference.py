"""The specification of aggregate_adapters, in PyTorch; what runs on CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..tiles import MIN_ROWS
from .checks import check_aggregate

_LEAST_PIECE = 64
_MOST_PIECE = 1024
"""Elements of a piece of a bank's row: worth a look-up of its own, and all N of them in a core's own cache."""


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
    piece = _piece(math.gcd(split, row - split))
    few = bits.sum(-1).amax((1, 2)) * 2 <= adapters
    if bank.dtype != torch.float32 or piece < _LEAST_PIECE:
        few.zero_()
    if few.any():
        _add_up(bank, bits[few], slots, slot_ids[few], split, piece)
    if not few.all():
        _multiply(bank, bits[~few].float(), slots, slot_ids[~few], split, bits[~few].sum(-1).float().reciprocal())


def _add_up(bank: Tensor, bits: Tensor, slots: Tensor, slot_ids: Tensor, split: int, piece: int) -> None:
    """``bits`` ``[P, 2, L, N]``. A row is cut into pieces of one length, so that none belongs to both masks.

    Piece by piece: what several profiles choose of one is in the cache when the next profile asks for it.
    """
    blocks, adapters, row = bank.shape
    profiles, pieces = slot_ids.numel(), bank.view(-1, piece)
    for side, (begin, end) in enumerate(((0, split), (split, row))):
        chosen = bits[:, side].transpose(0, 1)
        where = chosen.nonzero()
        rows = (where[:, 0] * adapters + where[:, 2]) * (row // piece)
        counts = chosen.sum(-1)
        starts = counts.flatten().cumsum(0) - counts.flatten()
        places = torch.arange(begin // piece, end // piece)[:, None]
        offsets = (places - begin // piece) * rows.numel() + starts
        total = embedding_bag((places + rows).flatten(), pieces, offsets.flatten(), mode="sum")
        total = total.view(-1, blocks, profiles, piece).mul_(counts.float().reciprocal()[..., None])
        into = slots[:, :, begin:end].view(blocks, slots.shape[1], -1, piece)
        into.index_copy_(1, slot_ids, total.permute(1, 2, 0, 3).to(slots.dtype))


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


def _piece(size: int) -> int:
    """The largest divisor up to `_MOST_PIECE`."""
    return next(size // parts for parts in range(1, size + 1) if size % parts == 0 and size // parts <= _MOST_PIECE)


def _bits(masks: Tensor, adapters: int) -> Tensor:
    """``[P, 2, L, N]`` bool."""
    shifts = torch.arange(8, dtype=torch.uint8, device=masks.device)
    return ((masks.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :adapters].bool()
