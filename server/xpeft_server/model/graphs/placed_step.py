"""A step of generation at fixed addresses: the input of a captured step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from xpeft_kernels import Impl, PlacedSteps, PlacedTiles, StepRoom, Tiles, cut_runs

from ..batches.step_packing import StepRows
from ..kv.arena import ArenaRow, KvArena
from ..kv.arena_step import ArenaStep, arena_tables, step_room
from ..lanes import Lanes
from .static_fields import Field, Staged, StaticFields, put_rows


@dataclass(frozen=True)
class PlacedStep:
    """T tokens; filler writes its keys and values to the arena's scratch token.

    Args:
        input_ids, position_ids: ``[1, T]`` int64.
    """

    input_ids: Tensor
    position_ids: Tensor
    groups: ArenaStep
    tiles: PlacedTiles


class StaticStep:
    """The static inputs of steps of up to ``tokens`` tokens, prefill and decode alike.

    Args:
        tile_rows: most rows of a profile's tokens in a piece.
        memory: device bytes, ``size_of(tokens, arena)`` at least; see `StaticFields`.
    """

    def __init__(
        self, tokens: int, tile_rows: int, arena: KvArena, memory: Tensor, lanes: Lanes, *, impl: Impl = Impl.AUTO
    ) -> None:
        self._tile_rows = tile_rows
        self._arena = arena
        room = step_room(arena, tokens)
        self._fields = StaticFields(_fields(tokens, room), memory, lanes)
        on = self._fields.device
        self.step = PlacedStep(
            input_ids=on["ids"][None],
            position_ids=on["positions"][None],
            groups=ArenaStep(arena, on["places"], PlacedSteps(on["pieces"], on["joins"], room.parts), impl=impl),
            tiles=PlacedTiles(tokens=tokens, rows=tile_rows, table=on["tiles"]),
        )

    @staticmethod
    def size_of(tokens: int, arena: KvArena) -> int:
        """Bytes."""
        return StaticFields.size_of(_fields(tokens, step_room(arena, tokens)))

    def stage(self, rows: StepRows[ArenaRow]) -> Staged:
        """Lay out a step that fits on the host."""
        staged = self._fields.stage()
        to = staged.fields
        put_rows(to["ids"], rows.ids)
        put_rows(to["positions"], rows.positions)
        to["places"][:], pieces, joins, _ = arena_tables(self._arena, rows.runs, to["places"].size)
        put_rows(to["pieces"], pieces)
        put_rows(to["joins"], joins)
        put_rows(to["tiles"], cut_runs(Tiles.of(rows.slots.tolist(), rows.lengths.tolist()).runs, self._tile_rows))
        return staged

    def load(self, staged: Staged) -> None:
        """See `StaticFields.load`."""
        self._fields.load(staged)


def _fields(tokens: int, room: StepRoom) -> list[Field]:
    """There are at most as many tiles as tokens."""
    return [
        Field("ids", np.int64, (tokens,)),
        Field("positions", np.int64, (tokens,)),
        Field("places", np.int64, (tokens,)),
        Field("pieces", np.int32, (room.pieces, 7)),
        Field("joins", np.int32, (room.joins, 3)),
        Field("tiles", np.int32, (tokens, 3)),
    ]
