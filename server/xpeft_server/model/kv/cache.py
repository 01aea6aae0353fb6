"""Keys and values of running sequences: a contiguous row for each, in pools of rows of equal length.

Rows, not pages: attention over the rows of a pool is one strided product, while pages would have to be gathered first,
at every step and in every block. Pages save room for tokens that may never come; rows save it by growing: a sequence
moves to a row twice as long when it needs one, which copies each token about once in its life.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from ..device_memory import is_out_of_memory
from .attention import KvStep, Row, Run

if TYPE_CHECKING:
    from .arena_step import ArenaStep

SHORTEST = 64
"""Tokens of the shortest row. Every length is a multiple of it, so that sums over rows are always split alike."""


class KvShape(NamedTuple):
    """What is cached of a token: ``heads`` keys and values of ``size`` numbers in each of ``blocks``.

    ``group`` query heads share a key.
    """

    blocks: int
    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device
    group: int = 1

    @property
    def token_bytes(self) -> int:
        return 2 * self.blocks * self.heads * self.size * self.dtype.itemsize


class KvStore(Protocol[Row]):
    """Holds the keys and values of sequences: `KvCache` on CPU, `KvArena` where steps are CUDA graphs.

    A row is a sequence's place; only its store looks inside. For one thread. If there is no memory for what a row
    needs, nothing changes: `KvCache` raises torch's error, and `KvArena`, which was allocated whole and only copies,
    returns None.

    Attributes:
        tokens: size in tokens; a row counts with its full length.
        used: tokens of all claimed rows.
    """

    shape: KvShape
    tokens: int
    used: int

    @property
    def longest(self) -> int:
        """Tokens of the longest row: what one sequence can have."""
        ...

    def claim(self, tokens: int, *, spare: int = 0) -> Row | None:
        """A row for a sequence of so many tokens; None if it does not fit beside the others and ``spare``."""
        ...

    def lengthen(self, row: Row, tokens: int) -> Row | None:
        """A row that is long enough, with the contents of this one, which it replaces.

        Returns: None if there is no room; the row stays as it is then.
        """
        ...

    def release(self, row: Row) -> None: ...

    def shelve(self, row: Row, tokens: int) -> Row:
        """Keep the first tokens of a row to copy from, out of the way of steps. It replaces the row, and is released
        like one.
        """
        ...

    def copy(self, source: Row, row: Row, tokens: int) -> None:
        """Copy the first tokens of one row into another."""
        ...

    def step(self, runs: Sequence[Run[Row]], tokens: int) -> KvStep | ArenaStep:
        """Attention of a step over the rows as they are now; invalid after the next change of any row.

        Args:
            runs: all real tokens of the step.
            tokens: packed tokens, including filler, which nothing sees or stores.
        """
        ...


def row_lengths(tokens: int, context: int) -> list[int]:
    """The lengths of rows in a store of ``tokens`` tokens, for sequences of up to ``context``."""
    lengths = [SHORTEST]
    while lengths[-1] < context and 2 * lengths[-1] <= tokens:
        lengths.append(2 * lengths[-1])
    return lengths


class KvRow:
    """A sequence's place. ``index`` changes when another row leaves: rows in use are the first of their pool."""

    __slots__ = ("index", "pool")

    def __init__(self, pool: KvPool, index: int) -> None:
        self.pool = pool
        self.index = index

    @property
    def length(self) -> int:
        """Tokens that there is room for."""
        return self.pool.length


class KvPool:
    """Rows of one length. Unused memory is zero: a sequence never finds anything of another one.

    Args: least: rows that there is memory for once there is any.
    """

    def __init__(self, shape: KvShape, length: int, *, least: int = 8) -> None:
        self.length = length
        self._least = least
        self.rows: list[KvRow] = []
        self._shape = shape
        self._states = self._zeros(0)

    @property
    def states(self) -> Tensor:
        """``[L, 2, rows in use, heads, length, size]``, keys before values; a view that the next change invalidates."""
        return self._states[:, :, : len(self.rows)]

    @property
    def bytes(self) -> int:
        return self._states.numel() * self._states.itemsize

    def add(self) -> KvRow:
        capacity = self._states.shape[2]
        if len(self.rows) == capacity:
            self._resize(max(self._least, 2 * capacity))
        row = KvRow(self, len(self.rows))
        self.rows.append(row)
        return row

    def remove(self, row: KvRow) -> None:
        """The last row takes the place of the one that leaves."""
        last = self.rows.pop()
        if last is not row:
            self._states[:, :, row.index] = self._states[:, :, last.index]
            self.rows[row.index] = last
            row.index, last.index = last.index, row.index
        self._states[:, :, row.index].zero_()
        capacity = self._states.shape[2]
        if 4 * len(self.rows) < capacity:
            self._shrink(capacity // 2 if self.rows else 0)

    def _shrink(self, capacity: int) -> None:
        """Nothing changes if there is no memory for the copy."""
        try:
            self._resize(capacity)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise

    def _resize(self, capacity: int) -> None:
        states = self._zeros(capacity)
        kept = min(capacity, self._states.shape[2])
        states[:, :, :kept] = self._states[:, :, :kept]
        self._states = states

    def _zeros(self, rows: int) -> Tensor:
        shape = self._shape
        size = shape.blocks, 2, rows, shape.heads, self.length, shape.size
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)


class KvCache:
    """A `KvStore`: rows of 64, 128, 256 … tokens, at most ``tokens`` in total. For one thread.

    Args:
        tokens: size in tokens; a row counts with its full length.
        context: tokens of the longest sequence that the model takes.
    """

    def __init__(self, shape: KvShape, *, tokens: int, context: int) -> None:
        self.shape = shape
        self.tokens = max(tokens, SHORTEST)
        self.used = 0
        self.pools: Mapping[int, KvPool] = {length: KvPool(shape, length) for length in row_lengths(tokens, context)}

    @property
    def longest(self) -> int:
        """Tokens of the longest row: what one sequence can have."""
        return max(self.pools)

    @property
    def bytes(self) -> int:
        """Memory that is held, for rows in use and for some to come."""
        in_pools = sum(pool.length * len(pool.rows) for pool in self.pools.values())
        return sum(pool.bytes for pool in self.pools.values()) + (self.used - in_pools) * self.shape.token_bytes

    def claim(self, tokens: int, *, spare: int = 0) -> KvRow | None:
        """A row for a sequence of so many tokens; None if it does not fit beside the others and ``spare``."""
        length = self._row_length(tokens)
        if self.used + length + spare > self.tokens:
            return None
        row = self.pools[length].add()
        self.used += length
        return row

    def lengthen(self, row: KvRow, tokens: int) -> KvRow | None:
        """The same row if it is long enough, else a longer one with its contents; None if there is no room."""
        if tokens <= row.pool.length:
            return row
        length = self._row_length(tokens)
        if self.used - row.pool.length + length > self.tokens:
            return None
        longer = self.pools[length].add()
        old, new = row.pool.states, longer.pool.states
        new[:, :, longer.index, :, : row.pool.length] = old[:, :, row.index]
        self.used += length
        self.release(row)
        return longer

    def release(self, row: KvRow) -> None:
        self.used -= row.pool.length
        row.pool.remove(row)

    def shelve(self, row: KvRow, tokens: int) -> KvRow:
        """See `KvStore.shelve`: a row of just this length, in a pool of its own, so that decodes do not read it."""
        shelved = KvPool(self.shape, tokens, least=1).add()
        self.copy(row, shelved, tokens)
        self.release(row)
        self.used += tokens
        return shelved

    def copy(self, source: KvRow, row: KvRow, tokens: int) -> None:
        """See `KvStore.copy`."""
        old, new = source.pool.states, row.pool.states
        new[:, :, row.index, :, :tokens] = old[:, :, source.index, :, :tokens]

    def step(self, runs: Sequence[Run[KvRow]], tokens: int) -> KvStep:
        """See `KvStore.step`."""
        return KvStep(runs, self.shape.device)

    def _row_length(self, tokens: int) -> int:
        return next(length for length in self.pools if length >= tokens)
