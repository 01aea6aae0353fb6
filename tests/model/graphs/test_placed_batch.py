from __future__ import annotations

import numpy as np
import pytest
import torch

from xpeft_kernels import cut_runs, cut_sequences
from xpeft_kernels.tiles import Tiles
from xpeft_server.model.batches.packing import PackedRows
from xpeft_server.model.graphs.placed_batch import BatchSize, PieceSizes, StaticBatch
from xpeft_server.model.lanes import HostLanes
from xpeft_server.model.packed_sequences import AttentionKernel
from xpeft_server.model.tokens.tokenizing import TokenizedText

BUCKET, PIECES = BatchSize(40, 5), PieceSizes(queries=16, tiles=8)


@pytest.fixture
def memory() -> torch.Tensor:
    return torch.full((StaticBatch.size_of(BUCKET, PIECES) + 100,), 255, dtype=torch.uint8)


def make(memory: torch.Tensor, bucket: BatchSize = BUCKET) -> StaticBatch:
    return StaticBatch(
        bucket, PIECES, memory, HostLanes(), first_position=2, longest=20, attention=AttentionKernel.OURS
    )


def rows_of(*lengths: int) -> PackedRows:
    texts = [
        TokenizedText(np.full(length, 10 + n, np.int32), np.full(length, n % 2, np.int32))
        for n, length in enumerate(lengths)
    ]
    return PackedRows.of(texts, first_position=2)


def test_a_batch_is_all_that_is_there(memory: torch.Tensor) -> None:
    static = make(memory)
    static.load(static.stage(rows_of(30, 2, 3, 1, 4), np.array([0, 1, 2, 3, 3])))
    static.load(static.stage(rows_of(3, 17), np.array([4, 4])))
    batch = static.batch
    assert batch.input_ids.tolist() == [[10] * 3 + [11] * 17 + [0] * 20]
    assert batch.position_ids.tolist() == [[2, 3, 4, *range(2, 19)] + [2] * 20]
    assert batch.token_type_ids.tolist() == [[0] * 3 + [1] * 17 + [0] * 20]
    assert (batch.starts.tolist(), batch.ends.tolist()) == ([0, 3, 0, 0, 0], [3, 20, 1, 1, 1])
    assert batch.groups._bounds is not None
    assert batch.groups._bounds.tolist() == [0, 3, 20, 20, 20, 20]
    queries = batch.groups._sequences.pieces(16)
    assert queries[:3].tolist() == cut_sequences([3, 17], 16).tolist()
    assert not queries[3:].any()
    tiles = batch.tiles.pieces(8)
    assert (
        tiles[:3].tolist() == cut_runs(Tiles.of([4, 4], [3, 17]).runs, 8).tolist() == [[4, 0, 8], [4, 8, 8], [4, 16, 4]]
    )
    assert not tiles[3:].any()


def test_a_batch_of_the_bare_plm_has_no_tiles(memory: torch.Tensor) -> None:
    static = make(memory)
    static.load(static.stage(rows_of(5, 5), np.array([1, 2])))
    static.load(static.stage(rows_of(5, 5), None))
    assert not static.batch.tiles.pieces(8).any()


def test_addresses_stay_and_nothing_beyond_the_bucket_is_touched(memory: torch.Tensor) -> None:
    static = make(memory)
    fields = (static.batch.input_ids, static.batch.ends, static.batch.tiles.table)
    before = [each.data_ptr() for each in fields]
    static.load(static.stage(rows_of(3, 17), np.array([4, 4])))
    assert [each.data_ptr() for each in fields] == before
    assert (memory[StaticBatch.size_of(BUCKET, PIECES) :] == 255).all()


@pytest.mark.parametrize("lengths", [[40], [8] * 5, [1, 1, 1, 1, 36], [9, 9, 9, 9, 4], [1], [17, 17, 1, 1, 4]])
def test_there_is_room_for_the_pieces_of_whatever_fits(memory: torch.Tensor, lengths: list[int]) -> None:
    static = make(memory)
    static.load(static.stage(rows_of(*lengths), np.arange(len(lengths))))
    assert static.batch.tiles.table[:, 2].sum() == sum(lengths)
    queries = static.batch.groups._sequences.pieces(16)
    assert len(cut_sequences(lengths, 16)) == int((queries[:, 1] > 0).sum())


def test_batches_of_several_buckets_share_memory(memory: torch.Tensor) -> None:
    large, small = make(memory), make(memory, BatchSize(8, 2))
    large.load(large.stage(rows_of(30, 2), np.array([0, 1])))
    small.load(small.stage(rows_of(4, 4), np.array([3, 4])))
    assert small.batch.input_ids.tolist() == [[10] * 4 + [11] * 4]
    large.load(large.stage(rows_of(30, 2), np.array([0, 1])))
    assert large.batch.input_ids.tolist() == [[10] * 30 + [11] * 2 + [0] * 8]
