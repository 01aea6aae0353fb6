"""Tables of pieces: of sequences and of runs, cut on the host or placed on the device already."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import PlacedSequences, PlacedTiles, Sequences, Tiles, cut_runs, cut_sequences

BATCHES = [[1], [63], [1] * 137, [499, 1], [1, 499], [500], [16, 64, 65, 128, 15, 129]]


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_pieces_cover_every_row_once_and_know_their_sequence(lengths: list[int], rows: int) -> None:
    ends = np.cumsum(lengths)
    seen = []
    for start, length, first in cut_sequences(lengths, rows):
        which = int(np.searchsorted(ends, start, side="right"))
        assert (start, length) == (ends[which] - lengths[which], lengths[which])
        assert first % rows == 0
        seen += range(start + first, start + min(first + rows, length))
    assert seen == list(range(ends[-1]))


def test_a_sequence_without_rows_has_no_piece() -> None:
    assert cut_sequences([0, 3, 0, 17, 0], 16).tolist() == [[0, 3, 0], [3, 17, 0], [3, 17, 16]]
    assert cut_sequences([0], 16).shape == (0, 3)


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_pieces_of_runs_cover_every_row_once_with_its_slot(lengths: list[int], rows: int) -> None:
    tiles = Tiles.of(range(7, 7 + len(lengths)), lengths)
    owner = []
    for slot, start, length in cut_runs(tiles.runs, rows):
        assert 1 <= length <= rows
        assert start == len(owner)
        owner += [slot] * length
    assert owner == np.repeat(np.arange(7, 7 + len(lengths)), lengths).tolist()


@pytest.mark.parametrize(
    ("batch", "cut"),
    [
        (Sequences.of([40, 1, 17]), lambda rows: cut_sequences([40, 1, 17], rows)),
        (Tiles.of([4, 0, 4], [40, 1, 17]), lambda rows: cut_runs(Tiles.of([4, 0, 4], [40, 1, 17]).runs, rows)),
    ],
    ids=["sequences", "tiles"],
)
def test_a_batchs_pieces_are_those_that_others_cut_and_made_once_for_each_size(
    batch: Sequences | Tiles, cut: Callable[[int], np.ndarray]
) -> None:
    assert batch.tokens == 58
    for rows in (16, 64):
        assert batch.pieces(rows).dtype == torch.int32
        assert batch.pieces(rows).tolist() == cut(rows).tolist()
        assert batch.pieces(rows) is batch.pieces(rows)


@pytest.mark.parametrize("kind", [PlacedSequences, PlacedTiles])
def test_a_placed_table_is_handed_out_as_it_is(kind: type[PlacedSequences | PlacedTiles]) -> None:
    table = torch.zeros(5, 3, dtype=torch.int32)
    placed = kind(tokens=64, rows=16, table=table)
    assert placed.tokens == 64
    assert placed.pieces(16) is table


@pytest.mark.parametrize("kind", [PlacedSequences, PlacedTiles])
def test_a_table_that_was_cut_for_another_kernel_is_refused(kind: type[PlacedSequences | PlacedTiles]) -> None:
    with pytest.raises(ValueError, match="the table has pieces of 16 rows, the kernel takes 32"):
        kind(tokens=64, rows=16, table=torch.zeros(5, 3, dtype=torch.int32)).pieces(32)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.zeros(5, 4, dtype=torch.int32), r"table is \(5, 4\) torch.int32"),
        (torch.zeros(3, dtype=torch.int32), r"table is \(3,\) torch.int32"),
        (torch.zeros(5, 3, dtype=torch.int64), r"table is \(5, 3\) torch.int64"),
        (torch.zeros(3, 5, dtype=torch.int32).T, r"table is \(5, 3\) torch.int32, it must be .*contiguous"),
    ],
)
def test_what_is_no_table_is_refused_with_its_shape(table: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlacedSequences(tokens=8, rows=16, table=table)


@pytest.mark.parametrize("lengths", [[], [3, 0], [-1], [[2]]])
def test_what_describes_no_batch_is_refused_with_its_value(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not describe a batch") as caught:
        Sequences.of(lengths)
    assert repr(lengths) in str(caught.value)
