"""Rows of many profiles as one packed batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_kernels import Tiles
from xpeft_server.model.batches.packing import PackedBatch, pack, packed_order
from xpeft_server.model.plm import Plm

from .labelled_texts import LabelledTexts


class Pick(NamedTuple):
    """Some texts of the profile in one slot. places: ``[n]``, n ≥ 1, where they stand in ``texts``."""

    slot: int
    texts: LabelledTexts
    places: NDArray[np.integer]

    @property
    def tokens(self) -> int:
        return sum(len(self.texts.texts[place]) for place in self.places)


class RowBatch(NamedTuple):
    """Packed texts of many profiles; on the PLM's device.

    Args:
        rows: ``[Q]`` int64, packed text → its row among all picked texts, in the order of the picks.
        slots: ``[Q]`` int64; targets: ``[Q]``, as in `LabelledTexts`.
    """

    packed: PackedBatch
    tiles: Tiles
    rows: Tensor
    slots: Tensor
    targets: Tensor


def pack_rows(plm: Plm, picks: Sequence[Pick]) -> RowBatch:
    """Args: picks: at least one."""
    texts = [pick.texts.texts[place] for pick in picks for place in pick.places]
    slots = np.repeat([pick.slot for pick in picks], [len(pick.places) for pick in picks])
    targets = torch.cat([pick.texts.targets[torch.from_numpy(pick.places.astype(np.int64))] for pick in picks])
    order = packed_order(slots, [len(text) for text in texts])
    packed = pack(
        [texts[row] for row in order], slots[order].tolist(), first_position=plm.first_position, device=plm.device
    )
    assert packed.tiles is not None  # noqa: S101
    rows = torch.from_numpy(order.astype(np.int64))
    return RowBatch(
        packed,
        packed.tiles,
        rows.to(plm.device, non_blocking=True),
        torch.from_numpy(slots[order]).to(plm.device, non_blocking=True),
        targets[rows].to(plm.device, non_blocking=True),
    )


def renumbered(picks: Sequence[Pick]) -> tuple[list[int], list[Pick]]:
    """The slots that the picks use, in ascending order, and the picks with their slots counted among these."""
    slots = sorted({pick.slot for pick in picks})
    return slots, [pick._replace(slot=slots.index(pick.slot)) for pick in picks]


def within(picks: Sequence[Pick], tokens: int) -> Iterator[list[Pick]]:
    """Part the picks, in order, into runs of at most ``tokens`` tokens; a pick beyond that is cut, a text never is."""
    run: list[Pick] = []
    total = 0
    for pick in picks:
        for part in pick.texts.within(pick.places, tokens):
            piece = Pick(pick.slot, pick.texts, part)
            if run and total + piece.tokens > tokens:
                yield run
                run, total = [], 0
            run.append(piece)
            total += piece.tokens
    if run:
        yield run
