"""attend_cache against one query and one head at a time in float64; and how a step is cut into pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from xpeft_kernels import PlacedSteps, StepRoom, attend_cache, attend_cache_ref, cut_steps, spare_pieces, step_rows
from xpeft_kernels.attend_cache import SPAN

RUNS = np.array([[3, 1, 40, 9], [0, 3, 20, 0], [4, 7, 60, 5], [11, 0, 0, 0], [12, 1, 10, 0]])
"""(first query row, query rows, first cache row, known tokens); query row 11 is nobody's."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cache(kv_heads: int, d: int) -> tuple[Tensor, Tensor]:
    """Keys and values; rows that no sequence has are NaN."""
    states = torch.full((2, 90, kv_heads, d), torch.nan, dtype=torch.float64)
    for _, count, base, past in RUNS.tolist():
        states[:, base : base + past + count] = normal(2, past + count, kv_heads, d, seed=base)
    return states[0], states[1]


def placed(runs: np.ndarray, rows: int, *, spare: int = 0) -> PlacedSteps:
    pieces, joins, parts = cut_steps(runs, rows, spare=spare)
    return PlacedSteps(torch.from_numpy(pieces), torch.from_numpy(joins), parts)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (3, 1)])
def test_every_new_token_sees_its_sequence_up_to_itself(heads: int, kv_heads: int, window: int | None) -> None:
    query, (keys, values) = normal(13, heads, 8), cache(kv_heads, 8)
    expected = torch.full_like(query, torch.nan)
    for first, count, base, past in RUNS.tolist():
        for i in range(count):
            place = past + i
            seen = [base + j for j in range(place + 1) if window is None or place - j < window]
            for head in range(heads):
                own = head * kv_heads // heads
                weights = (0.3 * keys[seen, own] @ query[first + i, head]).softmax(0)
                expected[first + i, head] = weights @ values[seen, own]
    covered = [row for row in range(13) if row != 11]
    for rows in (100, 2, 1):
        found = attend_cache(query, keys, values, placed(RUNS, rows), scale=0.3, window=window)
        torch.testing.assert_close(found[covered], expected[covered], rtol=0, atol=1e-12)


def test_what_is_called_is_the_reference_on_cpu() -> None:
    query, (keys, values) = normal(13, 4, 8), cache(2, 8)
    arguments = query, keys, values, placed(RUNS, 4)
    some = [0, 3, 12]
    assert torch.equal(attend_cache(*arguments, scale=1.0)[some], attend_cache_ref(*arguments, scale=1.0)[some])


def test_a_sequences_bits_do_not_depend_on_its_company() -> None:
    query, (keys, values) = normal(13, 4, 8).float(), (each.float() for each in cache(2, 8))
    together = attend_cache(query, keys, values, placed(RUNS, 4), scale=1.0)
    for run in RUNS:
        rows = slice(run[0], run[0] + run[1])
        alone = attend_cache(query, keys, values, placed(run[None], 4), scale=1.0)
        assert torch.equal(alone[rows], together[rows])


def test_keys_that_are_cut_change_nothing() -> None:
    runs = np.array([[0, 1, 3, 5 * SPAN], [1, 1, 9, 2 * SPAN - 1]])
    query, keys, values = normal(2, 4, 8), normal(1500, 2, 8, seed=1), normal(1500, 2, 8, seed=2)
    whole = attend_cache(query, keys, values, placed(runs, 4), scale=1.0)
    cut = placed(runs, 4, spare=100)
    assert len(cut.pieces) == 8
    assert torch.equal(attend_cache(query, keys, values, cut, scale=1.0), whole)


def test_runs_are_cut_into_pieces_that_know_what_is_before_them() -> None:
    assert cut_steps(RUNS, 3).pieces[:, :4].tolist() == [
        [3, 1, 40, 9],
        [0, 3, 20, 0],
        [4, 3, 60, 5],
        [7, 3, 60, 8],
        [10, 1, 60, 11],
        [12, 1, 10, 0],
    ]
    assert cut_steps(RUNS, 100).pieces[:, :4].tolist() == RUNS[[0, 1, 2, 4]].tolist()
    for runs in (RUNS, RUNS[:0]):
        pieces, joins, parts = cut_steps(runs, 3, spare=100)
        assert (pieces.dtype, joins.dtype, joins.shape, parts) == (np.int32, np.int32, (0, 3), 0)
        assert pieces.shape[1] == 7
        assert not pieces[:, 4:].any()
    assert cut_steps(RUNS[:0], 3).pieces.shape == (0, 7)


def test_keys_of_single_tokens_are_cut_evenly_as_far_as_there_are_pieces_to_spare() -> None:
    runs = np.array([[0, 1, 10, SPAN - 1], [1, 2, 20, 4 * SPAN], [3, 1, 30, SPAN], [4, 1, 40, 5 * SPAN - 1]])
    whole = [[0, 1, 10, SPAN - 1, 0, 0, 0], [1, 2, 20, 4 * SPAN, 0, 0, 0]]
    two, five = [3, 1, 30, SPAN], [4, 1, 40, 5 * SPAN - 1]
    assert cut_steps(runs, 8).pieces.tolist() == [*whole, [*two, 0, 0, 0], [*five, 0, 0, 0]]
    some = cut_steps(runs, 8, spare=2)
    assert some.pieces.tolist() == [*whole, [*two, 0, 0, 0], [*five, 0, 2, 0], [*five, 2, 2, 0], [*five, 4, 1, 0]]
    assert (some.joins.tolist(), some.parts) == ([[4, 0, 5 * SPAN - 1]], 5)
    most = cut_steps(runs, 8, spare=5)
    parts = [[*two, 0, 1, 0], [*two, 1, 1, 0], *([*five, span, 1, 2] for span in range(5))]
    assert most.pieces.tolist() == [*whole, *parts]
    assert (most.joins.tolist(), most.parts) == ([[3, 0, SPAN], [4, 2, 5 * SPAN - 1]], 7)
    assert cut_steps(runs, 8, spare=100).pieces.tolist() == most.pieces.tolist()


@given(
    st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 40]), st.integers(0, 9 * SPAN)), min_size=1, max_size=12),
    st.integers(0, 40),
    st.integers(0, 5000),
)
def test_whatever_is_in_a_step_fits_into_the_room_for_it(
    sequences: list[tuple[int, int]], spare: int, unused: int
) -> None:
    new, past = np.array(sequences).T
    runs = np.stack([np.cumsum(new) - new, new, np.cumsum(new + past) - new - past, past], axis=1)
    lengths = new + past
    room = StepRoom.of(int(new.sum()), longest=int(lengths.max()), room=int(lengths.sum()) + unused, spare=spare)
    pieces, joins, parts = cut_steps(runs, 8, spare=spare)
    assert len(pieces) <= room.pieces
    assert len(joins) <= room.joins
    assert parts <= room.parts
    assert len(pieces) - int((-(-new // 8)).sum()) <= spare


def test_there_is_room_for_no_more_than_there_can_be() -> None:
    assert StepRoom.of(8, longest=SPAN, room=1 << 20, spare=100) == (8, 0, 0)
    assert StepRoom.of(2, longest=4 * SPAN, room=1 << 20, spare=100) == (2 + 6, 2, 8)
    assert StepRoom.of(64, longest=4 * SPAN, room=8 * SPAN, spare=100) == (64 + 8, 8, 16)
    assert StepRoom.of(64, longest=4 * SPAN, room=1 << 20, spare=100) == (64 + 100, 64, 256)


def test_fewer_heads_of_keys_have_more_pieces_to_spare() -> None:
    assert [spare_pieces(heads, 4, 64, 2) for heads in (1, 8, 32, 5000)] == [1024, 128, 32, 1]
    assert spare_pieces(1, 71, 64, 2) == 1024 // 3


@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_piece_has_room_for_at_least_one_token_whatever_the_heads(itemsize: int) -> None:
    rows = [step_rows(group, 64, itemsize) for group in (1, 2, 3, 4, 8, 16, 32, 33, 71)]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == (32 if itemsize == 2 else 16)
    assert rows[-1] == 1


QUERY, KEYS = torch.zeros(5, 4, 8), torch.zeros(9, 2, 8)
PIECES, JOINS = torch.zeros(1, 7, dtype=torch.int32), torch.zeros(1, 3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": QUERY[0]}, r"query \(4, 8\), keys \(9, 2, 8\) and values \(9, 2, 8\) do not fit"),
        ({"values": KEYS[:8]}, r"values \(8, 2, 8\) do not fit"),
        ({"query": QUERY[..., :4]}, r"query \(5, 4, 4\), keys"),
        ({"query": QUERY[:, :3]}, "3 query heads cannot share 2 heads of keys evenly"),
        ({"keys": KEYS.half()}, r"query is torch.float32, keys torch.float16, values torch.float32"),
        ({"values": torch.zeros(9, 8, 2).mT}, r"values has strides \(16, 1, 2\), the last must be 1"),
        ({"steps": PlacedSteps(PIECES[:, :3], JOINS, 0)}, r"pieces are \(1, 3\) torch.int32"),
        ({"steps": PlacedSteps(PIECES.long(), JOINS, 0)}, r"pieces are \(1, 7\) torch.int64, they must be \[\*, 7\]"),
        ({"steps": PlacedSteps(PIECES, JOINS.mT, 0)}, r"joins are \(3, 1\) torch.int32, they must be \[\*, 3\]"),
        ({"window": 0}, "window is 0, at least 1 is needed"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_shape(changed: dict[str, Tensor], message: str) -> None:
    valid = {"query": QUERY, "keys": KEYS, "values": KEYS, "steps": PlacedSteps(PIECES, JOINS, 0), "scale": 1.0}
    with pytest.raises(ValueError, match=message):
        attend_cache(**valid | changed)  # type: ignore[arg-type]
