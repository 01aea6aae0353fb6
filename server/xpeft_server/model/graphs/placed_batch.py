"""A packed batch at fixed addresses: the input of a captured forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xpeft_kernels import PlacedSequences, PlacedTiles, Tiles, cut_runs, cut_sequences

from ..batches.packing import PackedRows
from ..lanes import Lanes
from ..packed_sequences import AttentionKernel, PackedSequences
from .static_fields import Field, Staged, StaticFields, put_rows


class BatchSize(NamedTuple):
    """Most tokens and sequences of a batch."""

    tokens: int
    sequences: int


class PieceSizes(NamedTuple):
    """Rows of a piece: of a sequence's queries in attention, and of a profile's tokens in its adapter."""

    queries: int
    tiles: int


@dataclass(frozen=True)
class PlacedBatch:
    """T and Q are the bucket's. Tokens behind the last sequence belong to none; unused places point at the first row.
    Outputs for either are meaningless and never read.

    Args:
        input_ids, position_ids, token_type_ids: ``[1, T]`` int64.
        starts, ends: ``[Q]`` int64, first row of each sequence and the row behind its last.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    starts: Tensor
    ends: Tensor
    groups: PackedSequences
    tiles: PlacedTiles


class StaticBatch:
    """The static inputs of one bucket.

    Args:
        memory: device bytes, ``size_of(bucket, pieces)`` at least; see `StaticFields`.
        first_position: a valid position id, for filler.
        longest: tokens of the longest sequence that the model takes.
    """

    def __init__(
        self,
        bucket: BatchSize,
        pieces: PieceSizes,
        memory: Tensor,
        lanes: Lanes,
        *,
        first_position: int,
        longest: int,
        attention: AttentionKernel,
    ) -> None:
        self._pieces = pieces
        self._first_position = first_position
        self._fields = StaticFields(_fields(bucket, pieces), memory, lanes)
        on = self._fields.device
        sequences = PlacedSequences(tokens=bucket.tokens, rows=pieces.queries, table=on["queries"])
        self.batch = PlacedBatch(
            input_ids=on["ids"][None],
            position_ids=on["positions"][None],
            token_type_ids=on["types"][None],
            starts=on["starts"],
            ends=on["ends"],
            groups=PackedSequences(sequences, on["bounds"], min(longest, bucket.tokens), attention),
            tiles=PlacedTiles(tokens=bucket.tokens, rows=pieces.tiles, table=on["tiles"]),
        )

    @staticmethod
    def size_of(bucket: BatchSize, pieces: PieceSizes) -> int:
        """Bytes."""
        return StaticFields.size_of(_fields(bucket, pieces))

    def stage(self, rows: PackedRows, slots: NDArray[np.int64] | None) -> Staged:
        """Lay out a batch that fits into the bucket on the host; without ``slots`` it has no tiles."""
        tokens, sequences = rows.ids.size, rows.lengths.size
        staged = self._fields.stage()
        to = staged.fields
        for name, values in (("ids", rows.ids), ("positions", rows.positions), ("types", rows.types)):
            to[name][:tokens] = values
            to[name][tokens:] = self._first_position if name == "positions" else 0
        ends = np.cumsum(rows.lengths)
        to["starts"][:sequences], to["starts"][sequences:] = ends - rows.lengths, 0
        to["ends"][:sequences], to["ends"][sequences:] = ends, 1
        to["bounds"][0], to["bounds"][1 : sequences + 1], to["bounds"][sequences + 1 :] = 0, ends, tokens
        put_rows(to["queries"], cut_sequences(rows.lengths, self._pieces.queries))
        if slots is None:
            to["tiles"][:] = 0
        else:
            runs = Tiles.of(slots.tolist(), rows.lengths.tolist()).runs
            put_rows(to["tiles"], cut_runs(runs, self._pieces.tiles))
        return staged

    def load(self, staged: Staged) -> None:
        """See `StaticFields.load`."""
        self._fields.load(staged)


def _fields(bucket: BatchSize, pieces: PieceSizes) -> list[Field]:
    tokens, sequences = bucket
    return [
        Field("ids", np.int64, (tokens,)),
        Field("positions", np.int64, (tokens,)),
        Field("types", np.int64, (tokens,)),
        Field("starts", np.int64, (sequences,)),
        Field("ends", np.int64, (sequences,)),
        Field("bounds", np.int32, (sequences + 1,)),
        Field("queries", np.int32, (_most_pieces(bucket, pieces.queries), 3)),
        Field("tiles", np.int32, (_most_pieces(bucket, pieces.tiles), 3)),
    ]


def _most_pieces(bucket: BatchSize, rows: int) -> int:
    """An upper bound for any lengths: the last piece of each sequence need not be full."""
    return bucket.tokens // rows + bucket.sequences
