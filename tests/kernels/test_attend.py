"""attend_packed's reference against one sequence, one head and one query at a time in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xpeft_kernels import PlacedSequences, Sequences, attend_packed, cut_sequences, query_rows

LENGTHS = [3, 1, 9, 40, 5]
TOKENS = sum(LENGTHS)


def states(heads: int, seed: int, d: int = 8) -> Tensor:
    return torch.randn(TOKENS, heads, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def expected(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int | None, scale: float) -> Tensor:
    """``[T, heads, d]``."""
    out = torch.full_like(query, torch.nan)
    start = 0
    for length in LENGTHS:
        for head in range(query.shape[1]):
            shared = head * key.shape[1] // query.shape[1]
            for i in range(length):
                seen = [
                    start + j
                    for j in range(length)
                    if not (causal and j > i) and not (window is not None and abs(i - j) >= window)
                ]
                scores = key[seen, shared] @ query[start + i, head] * scale
                out[start + i, head] = scores.softmax(0) @ value[seen, shared]
        start += length
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, 9, 40, 100])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_every_sequence_sees_itself_and_nobody_else(
    causal: bool, window: int | None, kv_heads: int, scale: float | None
) -> None:
    given = states(4, 0), states(kv_heads, 1), states(kv_heads, 2)
    found = attend_packed(*given, Sequences.of(LENGTHS), scale=scale, causal=causal, window=window)
    wanted = expected(*given, causal=causal, window=window, scale=8**-0.5 if scale is None else scale)
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_table_that_is_on_the_device_is_refused_because_the_lengths_are_not_here() -> None:
    rows = query_rows(8, 4)
    placed = PlacedSequences(TOKENS, rows, torch.from_numpy(cut_sequences(LENGTHS, rows)))
    with pytest.raises(ValueError, match=r"the reference needs the lengths on the host, in Sequences, not Placed"):
        attend_packed(states(2, 0), states(2, 1), states(2, 2), placed)


@pytest.mark.parametrize("d", [0, 257])
def test_heads_that_the_kernel_does_not_take_have_no_number_of_rows(d: int) -> None:
    with pytest.raises(ValueError, match=f"heads of {d} elements of 2 bytes"):
        query_rows(d, 2)


def test_neither_has_float64() -> None:
    with pytest.raises(ValueError, match="heads of 64 elements of 8 bytes"):
        query_rows(64, 8)


@pytest.mark.parametrize(
    ("query", "key", "value", "window", "message"),
    [
        (states(4, 0)[0], states(2, 0), states(2, 0), None, r"query \(4, 8\), key \(58, 2, 8\)"),
        (states(4, 0), states(2, 0), states(1, 0), None, r"key \(58, 2, 8\) and value \(58, 1, 8\)"),
        (states(4, 0), states(2, 0, 6), states(2, 0, 6), None, r"query \(58, 4, 8\), key \(58, 2, 6\)"),
        (states(4, 0), states(2, 0)[1:], states(2, 0)[1:], None, r"query \(58, 4, 8\), key \(57, 2, 8\)"),
        (states(4, 0)[1:], states(2, 0)[1:], states(2, 0)[1:], None, "query has 57 rows, the sequences have 58"),
        (states(4, 0), states(3, 0), states(3, 0), None, "4 query heads are no multiple of 3 key heads"),
        (states(4, 0).float(), states(2, 0), states(2, 0), None, r"query is torch.float32, key torch.float64"),
        (*[states(2, 0).long()] * 3, None, "query is torch.int64"),
        (*[states(8, 0).transpose(1, 2)] * 3, None, r"strides \(64, 1, 8\).* the last must be 1"),
        (*[states(2, 0)] * 3, 0, "window 0 is less than 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_value(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attend_packed(query, key, value, Sequences.of(LENGTHS), window=window)
