"""Attention of one step over the arena, by tables on the device whose shapes do not depend on who is in the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xpeft_kernels import Impl, PlacedSteps, StepRoom, attend_cache, cut_steps, spare_pieces, step_rows

from ..lanes import on_device
from .attention import Run

if TYPE_CHECKING:
    from .arena import ArenaRow, KvArena


class ArenaStep:
    """Where each packed token's key and value go, and what its query sees. Made once a step, used by every block.

    The tables may be on the device already, as a CUDA graph's static inputs are: nothing here reads their values, and
    every shape follows from T and `StepRoom`. Filler tokens go to the scratch token; unused pieces and joins are zeros.

    Args:
        places: ``[T]`` int64, the arena's token for each packed token; `KvArena.scratch` for filler.
        steps: see `attend_cache`, of at most `piece_rows` query rows a piece.
    """

    def __init__(self, arena: KvArena, places: Tensor, steps: PlacedSteps, *, impl: Impl = Impl.AUTO) -> None:
        self._states = arena.states
        self._heads = arena.shape.group * arena.shape.heads
        self._places = places
        self._steps = steps
        self._impl = impl

    @classmethod
    def of(cls, arena: KvArena, runs: Sequence[Run[ArenaRow]], tokens: int, *, impl: Impl = Impl.AUTO) -> ArenaStep:
        """Args: runs, tokens: see `KvStore.step`."""
        places, pieces, joins, parts = arena_tables(arena, runs, tokens)
        device = arena.shape.device
        steps = PlacedSteps(on_device(pieces, device), on_device(joins, device), parts)
        return cls(arena, on_device(places, device), steps, impl=impl)

    def attend(
        self, block: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """Write the new keys and values, then softmax(q Kᵀ · scaling) V for each new token over its row up to itself.

        Args:
            query: ``[1, heads, T, d]``; key and value may have fewer heads (grouped queries).
            window: tokens at this distance or more are not seen.
        Returns: ``[1, T, heads, d]``; what filler gets is undefined.
        Raises: ValueError if the number of query heads is not that of the arena's shape, for which pieces are cut.
        """
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
        if q.shape[1] != self._heads:
            raise ValueError(f"query has {q.shape[1]} heads, the arena's shape says {self._heads}")
        keys, values = self._states[block]
        keys.index_copy_(0, self._places, k)
        values.index_copy_(0, self._places, v)
        scale = q.shape[2] ** -0.5 if scaling is None else scaling
        return attend_cache(q, keys, values, self._steps, scale=scale, window=window, impl=self._impl)[None]


class ArenaTables(NamedTuple):
    """See `ArenaStep` and `Steps`; on the host."""

    places: NDArray[np.int64]
    pieces: NDArray[np.int32]
    joins: NDArray[np.int32]
    parts: int


def arena_tables(arena: KvArena, runs: Sequence[Run[ArenaRow]], tokens: int) -> ArenaTables:
    """Args: runs, tokens: see `KvStore.step`."""
    table = np.array([(run.start, run.length, run.row.start, run.past) for run in runs], np.int64).reshape(-1, 4)
    start, length, base, past = table.T
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    places = np.full(tokens, arena.scratch)
    places[np.repeat(start, length) + within] = np.repeat(base + past, length) + within
    return ArenaTables(places, *cut_steps(table, piece_rows(arena), spare=_spare(arena)))


def piece_rows(arena: KvArena) -> int:
    """Most query rows of a piece."""
    return step_rows(arena.shape.group, arena.shape.size, arena.shape.dtype.itemsize)


def step_room(arena: KvArena, tokens: int) -> StepRoom:
    """How large the tables of a step of ``tokens`` tokens can be, whoever is in it."""
    return StepRoom.of(tokens, longest=arena.longest, room=arena.scratch, spare=_spare(arena))


def _spare(arena: KvArena) -> int:
    shape = arena.shape
    return spare_pieces(shape.heads, shape.group, shape.size, shape.dtype.itemsize)
