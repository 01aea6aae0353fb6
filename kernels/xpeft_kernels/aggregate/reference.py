"""The specification of aggregate_adapters, in PyTorch; what runs on CPU."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..tiles import MIN_ROWS
from .checks import check_aggregate

_LEAST_PIECE = 64
_MOST_PIECE = 1024
"""Elements of a piece of a bank's row: enough to be worth a look-up, few enough for all N to fit in a core's cache."""
_MOST_AT_ONCE = 32
"""Profiles whose sums are made in one call; they take memory until they are in their slots."""


def aggregate_adapters_ref(bank: Tensor, masks: Tensor, slots: Tensor, slot_ids: Tensor, *, split: int) -> None:
    """See `aggregate_adapters`.

    How a profile is computed depends on it alone, so that a slot's bits do not depend on the other profiles. Profiles
    that choose at most half of the bank read only the rows that they choose: one costs a sixth of the product with the
    whole bank (N=100, 50 chosen), sixteen still less than it.
    """
    check_aggregate(bank, masks, slots, slot_ids, split=split)
    adapters, row = bank.shape[1:]
    if masks.dtype != torch.uint8:
        _multiply(bank, masks.float(), slots, slot_ids, split)
        return
    chosen = _chosen(masks, adapters)
    piece = _piece(math.gcd(split, row - split))
    if bank.dtype == torch.float32 and piece >= _LEAST_PIECE:
        (few,) = (chosen.sum(-1).max((1, 2)) * 2 <= adapters).nonzero()
    else:
        few = np.arange(0)
    for start in range(0, len(few), _MOST_AT_ONCE):
        some = few[start : start + _MOST_AT_ONCE]
        _add_up(bank, chosen[some], slots, slot_ids[some], split, piece)
    many = np.delete(np.arange(len(chosen)), few)
    if len(many):
        weights = torch.from_numpy(chosen[many]).to(bank.device, torch.float32)
        _multiply(bank, weights, slots, slot_ids[many], split, weights.sum(-1).reciprocal())


def _add_up(bank: Tensor, chosen: NDArray[np.bool_], slots: Tensor, slot_ids: Tensor, split: int, piece: int) -> None:
    """Sum the chosen rows piece by piece, so that what several profiles choose of a piece is still in the cache.

    Rows are cut into pieces of one length, none of which belongs to both masks. NumPy works out which pieces to add, as
    an operator of torch is mostly overhead for so few numbers.
    """
    blocks, adapters, row = bank.shape
    places, of_first = row // piece, split // piece
    sides = chosen.transpose(1, 2, 0, 3)
    side, block, _, adapter = sides.nonzero()
    rows = (block * adapters + adapter) * places
    rows = np.concatenate(
        [
            np.add.outer(range(of_first), rows[side == 0]).ravel(),
            np.add.outer(range(of_first, places), rows[side == 1]).ravel(),
        ]
    )
    counts = sides.sum(-1).reshape(2, -1).repeat([of_first, places - of_first], axis=0).ravel()
    which, starts, sizes = (
        torch.from_numpy(each).to(bank.device) for each in (rows, counts.cumsum() - counts, counts.astype(np.float32))
    )
    total = embedding_bag(which, bank.view(-1, piece), starts, mode="sum").mul_(sizes.reciprocal()[:, None])
    total = total.view(places, blocks, len(chosen), piece).permute(1, 2, 0, 3)
    into = slots[:, :, :row].view(blocks, slots.shape[1], places, piece)
    into.index_copy_(1, slot_ids, total.to(slots.dtype))


def _multiply(
    bank: Tensor, weights: Tensor, slots: Tensor, slot_ids: Tensor, split: int, scale: Tensor | None = None
) -> None:
    """One product with the whole bank for each block and mask. It has 16 rows at least, so that a row's bits are always
    the same.

    Args: weights: ``[P, 2, L, N]``; scale: ``[P, 2, L]`` float32.
    """
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


def _chosen(masks: Tensor, adapters: int) -> NDArray[np.bool_]:
    """``[P, 2, L, N]``."""
    return np.unpackbits(masks.cpu().numpy(), axis=-1, count=adapters, bitorder="little").view(np.bool_)
