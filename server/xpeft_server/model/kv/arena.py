"""Keys and values of running sequences in one tensor that never moves, so that CUDA graphs can use it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from ..device_memory import is_out_of_memory
from .arena_step import ArenaStep
from .attention import Run
from .buddy_ranges import BuddyRanges
from .cache import SHORTEST, KvShape, row_lengths

logger = logging.getLogger(__name__)


class ArenaRow:
    """A sequence's place: ``length`` tokens of the arena from ``start``, which changes when others need room."""

    __slots__ = ("length", "start")

    def __init__(self, start: int, length: int) -> None:
        self.start = start
        self.length = length


class KvArena:
    """A `KvStore`: ranges of 64, 128, 256 … tokens of one tensor of ``tokens`` tokens. For one thread.

    Whatever the counters allow can be claimed: if enough is free, but in no single range, rows are moved, which copies
    each of them on the device's current stream. Memory beyond a sequence's tokens may hold anything; attention does not
    read it.

    Args:
        tokens: size in tokens; a row counts with its full length.
        context: tokens of the longest sequence that the model takes.

    Attributes:
        states: ``[L, 2, tokens + 1, heads, size]``, keys before values. The last token is `scratch`.
    """

    def __init__(self, shape: KvShape, *, tokens: int, context: int) -> None:
        self.shape = shape
        self.tokens = max(tokens, SHORTEST)
        self.used = 0
        self._lengths = row_lengths(tokens, context)
        self._ranges = BuddyRanges(self.tokens // SHORTEST * SHORTEST, SHORTEST)
        self._rows: dict[int, ArenaRow] = {}
        size = shape.blocks, 2, self._ranges.total + 1, shape.heads, shape.size
        self.states = torch.empty(size, dtype=shape.dtype, device=shape.device)

    @property
    def longest(self) -> int:
        """Tokens of the longest row: what one sequence can have."""
        return self._lengths[-1]

    @property
    def scratch(self) -> int:
        """The token that belongs to no sequence: filler is written there, and nothing reads it."""
        return self._ranges.total

    def claim(self, tokens: int, *, spare: int = 0) -> ArenaRow | None:
        """A row for a sequence of so many tokens; None if it does not fit beside the others and ``spare``."""
        length = self._row_length(tokens)
        if self.used + length + spare > self.tokens:
            return None
        row = ArenaRow(self._place(length), length)
        self._rows[row.start] = row
        self.used += length
        return row

    def lengthen(self, row: ArenaRow, tokens: int) -> ArenaRow | None:
        """The same row, lengthened if need be, with its contents.

        Returns: None if there is no room, or the device has no memory for the copy by which the row would move.
        """
        if tokens <= row.length:
            return row
        length = self._row_length(tokens)
        if self.used - row.length + length > self.tokens:
            return None
        if not self._ranges.extend(row.start, row.length, length) and not self._move_to_longer(row, length):
            return None
        self.used += length - row.length
        row.length = length
        return row

    def release(self, row: ArenaRow) -> None:
        del self._rows[row.start]
        self._ranges.give(row.start, row.length)
        self.used -= row.length

    def shelve(self, row: ArenaRow, tokens: int) -> ArenaRow:
        """See `KvStore.shelve`: the row itself, since a step reads no rows but its own."""
        return row

    def copy(self, source: ArenaRow, row: ArenaRow, tokens: int) -> None:
        """See `KvStore.copy`; on the device's current stream."""
        old, new = (slice(each.start, each.start + tokens) for each in (source, row))
        self.states[:, :, new] = self.states[:, :, old]

    def step(self, runs: Sequence[Run[ArenaRow]], tokens: int) -> ArenaStep:
        """See `KvStore.step`."""
        return ArenaStep.of(self, runs, tokens)

    def _row_length(self, tokens: int) -> int:
        return next(length for length in self._lengths if length >= tokens)

    def _place(self, length: int) -> int:
        """Take a range, and return its start. So much must be free; rows are moved if it is not in one range."""
        start = self._ranges.take(length)
        if start is None:
            start = self._ranges.clear(length)
            inside = [row for row in self._rows.values() if start <= row.start < start + length]
            for row in sorted(inside, key=lambda row: -row.length):
                self._move(row, self._place(row.length))
        return start

    def _move_to_longer(self, row: ArenaRow, length: int) -> bool:
        """Move a row to a longer range. If none is free, its own is freed first, and its contents are kept in a copy.

        Returns: False if the device has no memory for the copy; nothing has changed then.
        """
        start = self._ranges.take(length)
        if start is not None:
            self._ranges.give(row.start, row.length)
            self._move(row, start)
            return True
        try:
            kept = self.states[:, :, row.start : row.start + row.length].clone()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("the device has no memory to move %d tokens in the cache: %s", row.length, error)
            return False
        self._ranges.give(row.start, row.length)
        del self._rows[row.start]
        row.start = self._place(length)
        self._rows[row.start] = row
        self.states[:, :, row.start : row.start + row.length] = kept
        return True

    def _move(self, row: ArenaRow, start: int) -> None:
        """Move a row and its contents to a range that was taken for it."""
        old, new = (slice(place, place + row.length) for place in (row.start, start))
        self.states[:, :, new] = self.states[:, :, old]
        del self._rows[row.start]
        row.start = start
        self._rows[start] = row
