"""attend_cache against one query and one head at a time in float64; and how a step is cut into pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import attend_cache, attend_cache_ref, cut_steps, step_rows

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
        pieces = torch.from_numpy(cut_steps(RUNS, rows))
        found = attend_cache(query, keys, values, pieces, scale=0.3, window=window)
        torch.testing.assert_close(found[covered], expected[covered], rtol=0, atol=1e-12)


def test_what_is_called_is_the_reference_on_cpu() -> None:
    query, (keys, values) = normal(13, 4, 8), cache(2, 8)
    arguments = query, keys, values, torch.from_numpy(cut_steps(RUNS, 4))
    some = [0, 3, 12]
    assert torch.equal(attend_cache(*arguments, scale=1.0)[some], attend_cache_ref(*arguments, scale=1.0)[some])


def test_a_sequences_bits_do_not_depend_on_its_company() -> None:
    query, (keys, values) = normal(13, 4, 8).float(), (each.float() for each in cache(2, 8))
    together = attend_cache(query, keys, values, torch.from_numpy(cut_steps(RUNS, 4)), scale=1.0)
    for run in RUNS:
        rows = slice(run[0], run[0] + run[1])
        alone = attend_cache(query, keys, values, torch.from_numpy(cut_steps(run[None], 4)), scale=1.0)
        assert torch.equal(alone[rows], together[rows])


def test_runs_are_cut_into_pieces_that_know_what_is_before_them() -> None:
    assert cut_steps(RUNS, 3).tolist() == [
        [3, 1, 40, 9],
        [0, 3, 20, 0],
        [4, 3, 60, 5],
        [7, 3, 60, 8],
        [10, 1, 60, 11],
        [12, 1, 10, 0],
    ]
    assert cut_steps(RUNS, 100).tolist() == RUNS[[0, 1, 2, 4]].tolist()
    assert cut_steps(RUNS[:0], 3).shape == (0, 4)
    assert cut_steps(RUNS, 3).dtype == np.int32


@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_piece_has_room_for_at_least_one_token_whatever_the_heads(itemsize: int) -> None:
    rows = [step_rows(group, 64, itemsize) for group in (1, 2, 3, 4, 8, 16, 32, 33, 71)]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] == (32 if itemsize == 2 else 16)
    assert rows[-1] == 1


QUERY, KEYS, PIECES = torch.zeros(5, 4, 8), torch.zeros(9, 2, 8), torch.zeros(1, 4, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": QUERY[0]}, r"query \(4, 8\), keys \(9, 2, 8\) and values \(9, 2, 8\) do not fit"),
        ({"values": KEYS[:8]}, r"values \(8, 2, 8\) do not fit"),
        ({"query": QUERY[..., :4]}, r"query \(5, 4, 4\), keys"),
        ({"query": QUERY[:, :3]}, "3 query heads cannot share 2 heads of keys evenly"),
        ({"keys": KEYS.half()}, r"query is torch.float32, keys torch.float16, values torch.float32"),
        ({"values": torch.zeros(9, 8, 2).mT}, r"values has strides \(16, 1, 2\), the last must be 1"),
        ({"pieces": PIECES[:, :3]}, r"pieces are \(1, 3\) torch.int32"),
        ({"pieces": PIECES.long()}, r"pieces are \(1, 4\) torch.int64, they must be \[K, 4\] torch.int32"),
        ({"window": 0}, "window is 0, at least 1 is needed"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_shape(changed: dict[str, Tensor], message: str) -> None:
    given = {"query": QUERY, "keys": KEYS, "values": KEYS, "pieces": PIECES, "scale": 1.0} | changed
    with pytest.raises(ValueError, match=message):
        attend_cache(**given)  # type: ignore[arg-type]
