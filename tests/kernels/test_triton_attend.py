"""attend_packed in Triton against the reference in float64: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from xpeft_kernels import Impl, PlacedSequences, Sequences, attend_packed, cut_sequences, query_rows

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# The interpreter's bfloat16 is not a GPU's.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]
SHAPES = {
    "one row": [1],
    "63 of one": [63],
    "one-row sequences": [1] * 20,
    "137 uneven": [63, 1, 37, 20, 16],
    "199 beside 1": [199, 1],
    "1 beside 199": [1, 199],
}
SIGHTS: list[dict[str, Any]] = [
    {"causal": causal, "window": window} for causal in (False, True) for window in (None, 1, 34, 65)
]
SIGHTS_OF_BITS = [each for each in SIGHTS if each["window"] in (None, 34) or os.environ.get("NIGHTLY") == "1"]
"""Where only bits are compared; whether they are right, each of `SIGHTS` shows."""


@pytest.fixture(autouse=True)
def poisoned_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN."""

    def poisoned(*shape: Any, **options: Any) -> Tensor:
        return torch.full(*shape, torch.nan, **options)

    monkeypatch.setattr(torch, "empty", poisoned)


def states(tokens: int, heads: int, kv_heads: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value, ``[T, ·, d]``."""
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(tokens, n, d, generator=generator).to(DEVICE, dtype) for n in (heads, kv_heads, kv_heads)]


def check(given: list[Tensor], lengths: list[int], **options: Any) -> None:
    """At most twice the error of the reference in the same dtype."""
    sequences, dtype = Sequences.of(lengths, DEVICE), given[0].dtype
    true = attend_packed(*(each.double() for each in given), sequences, **options, impl=Impl.REFERENCE)
    own = (attend_packed(*given, sequences, **options, impl=Impl.REFERENCE).double() - true).abs().max()
    found = attend_packed(*given, sequences, **options, impl=Impl.TRITON)
    assert (found.dtype, found.shape) == (dtype, given[0].shape)
    assert found.is_contiguous()
    assert (found.double() - true).abs().max() <= 2 * own


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_shapes(shape: str, causal: bool, dtype: torch.dtype) -> None:
    lengths = SHAPES[shape]
    check(states(sum(lengths), 2, 1, 32, dtype), lengths, causal=causal)


@pytest.mark.parametrize("d", [1, 8, 24, 64, 80, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_of_every_size(d: int, causal: bool, dtype: torch.dtype) -> None:
    check(states(91, 2, 2, d, dtype), [17, 1, 73], causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_heads_stay_within_what_any_order_of_sums_keeps(dtype: torch.dtype) -> None:
    """PyTorch adds up 256 products in parts, which is more exact than one by one, as the kernel may."""
    given, sequences = states(90, 2, 2, 256, dtype), Sequences.of([90], DEVICE)
    found = attend_packed(*given, sequences, impl=Impl.TRITON).double()
    query, key, value = (each.double().transpose(0, 1) for each in given)
    # A score is within (d + 4)·2⁻²⁴ of Σ|term|, a weight within twice that in its exponent, and a sum of n products
    # within (n + 8)·2⁻²⁴ of Σ|term|; weights and results are rounded to the dtype.
    score = (256 + 4) * 2**-24 * (query.abs() @ key.abs().mT).max() / 16
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 0.0
    share = torch.expm1(2 * score) + (90 + 8) * 2**-24 + rounding
    weights = (query @ key.mT / 16).softmax(-1)
    bound = (share * (weights @ value.abs())).transpose(0, 1)
    assert ((found - (weights @ value).transpose(0, 1)).abs() <= bound).all()


@pytest.mark.parametrize("sight", SIGHTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_causal_or_not_with_a_window_or_without(sight: dict[str, Any], dtype: torch.dtype) -> None:
    check(states(233, 2, 1, 32, dtype), [150, 1, 19, 63], **sight)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 6), (6, 3), (6, 2), (6, 1)])
def test_query_heads_share_key_heads(heads: int, kv_heads: int) -> None:
    check(states(37, heads, kv_heads, 16, torch.float32), [20, 17], causal=True)


def test_a_window_beyond_all_rows_hides_nothing() -> None:
    check(states(37, 2, 1, 16, torch.float32), [20, 17], window=2**31 - 1)


def test_a_scale_of_ones_own() -> None:
    check(states(37, 2, 1, 16, torch.float32), [20, 17], scale=0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_of_any_strides_are_read_as_they_are(dtype: torch.dtype) -> None:
    query, key, value = states(137, 4, 2, 32, dtype)
    by_head = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in (query, key, value)]
    fused = torch.cat([query, key, value], dim=1).split([4, 2, 2], dim=1)
    wanted = attend_packed(query, key, value, Sequences.of([63, 74], DEVICE), impl=Impl.TRITON)
    for given in (by_head, fused):
        assert not given[1].is_contiguous()
        assert torch.equal(attend_packed(*given, Sequences.of([63, 74], DEVICE), impl=Impl.TRITON), wanted)


@pytest.mark.parametrize("sight", SIGHTS_OF_BITS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequences_bits_depend_neither_on_its_company_nor_on_its_place(
    sight: dict[str, Any], dtype: torch.dtype
) -> None:
    lengths = [16, 70, 1, 33, 3]
    given = states(sum(lengths), 2, 1, 32, dtype)
    together = attend_packed(*given, Sequences.of(lengths, DEVICE), **sight, impl=Impl.TRITON).split(lengths)
    for sequence, own in enumerate(zip(*(each.split(lengths) for each in given), strict=True)):
        alone = attend_packed(*own, Sequences.of([lengths[sequence]], DEVICE), **sight, impl=Impl.TRITON)
        assert torch.equal(together[sequence], alone)


@pytest.mark.parametrize("sight", SIGHTS_OF_BITS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_read_of_the_neighbours_and_nothing_written_there(sight: dict[str, Any], dtype: torch.dtype) -> None:
    lengths, own = [33, 70, 40], slice(33, 103)
    given = states(sum(lengths), 2, 1, 32, dtype)
    wanted = attend_packed(*(each[own] for each in given), Sequences.of([70], DEVICE), **sight, impl=Impl.TRITON)
    for each in given:
        each[:33], each[103:] = torch.nan, torch.nan
    rows = query_rows(32, dtype.itemsize)
    table = cut_sequences(lengths, rows)
    only = torch.from_numpy(table[table[:, 0] == 33]).to(DEVICE)
    found = attend_packed(*given, PlacedSequences(sum(lengths), rows, only), **sight, impl=Impl.TRITON)
    assert torch.equal(found[own], wanted)
    assert found[:33].isnan().all()
    assert found[103:].isnan().all()


@pytest.mark.parametrize("sight", SIGHTS_OF_BITS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_placed_table_gives_the_same_bits_and_unused_entries_write_nothing(
    sight: dict[str, Any], dtype: torch.dtype
) -> None:
    lengths, tokens = [63, 1, 37], 128
    given = states(tokens, 2, 1, 32, dtype)
    for each in given:
        each[sum(lengths) :] = torch.nan
    rows = query_rows(32, dtype.itemsize)
    cut = torch.from_numpy(cut_sequences(lengths, rows)).to(DEVICE)
    # What else stands in an entry of length 0 does not matter.
    table = torch.full((12, 3), 1 << 30, dtype=torch.int32, device=DEVICE)
    table[:, 1] = 0
    table[2 : 2 + len(cut)] = cut
    found = attend_packed(*given, PlacedSequences(tokens, rows, table), **sight, impl=Impl.TRITON)
    real = [each[: sum(lengths)] for each in given]
    wanted = attend_packed(*real, Sequences.of(lengths, DEVICE), **sight, impl=Impl.TRITON)
    assert torch.equal(found[: sum(lengths)], wanted)
    assert found[sum(lengths) :].isnan().all()


def test_a_table_that_was_cut_otherwise_is_refused() -> None:
    placed = PlacedSequences(5, 128, torch.zeros(4, 3, dtype=torch.int32, device=DEVICE))
    with pytest.raises(ValueError, match="pieces of 128 rows, the kernel takes 32"):
        attend_packed(*states(5, 2, 1, 32, torch.float32), placed, impl=Impl.TRITON)


def test_what_goes_in_is_left_as_it_was() -> None:
    given = states(37, 2, 1, 16, torch.float32)
    copies = [each.clone() for each in given]
    attend_packed(*given, Sequences.of([20, 17], DEVICE), impl=Impl.TRITON)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_gradient_is_refused_and_not_forgotten(which: int) -> None:
    given = states(5, 2, 1, 16, torch.float32)
    given[which].requires_grad_()
    with pytest.raises(ValueError, match=r"no gradient in Triton: ask for impl=Impl.REFERENCE"):
        attend_packed(*given, Sequences.of([5], DEVICE), impl=Impl.TRITON)


def test_float64_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no torch.float64 in Triton: ask for impl=Impl.REFERENCE"):
        attend_packed(*states(5, 2, 1, 16, torch.float64), Sequences.of([5], DEVICE), impl=Impl.TRITON)


def test_what_does_not_fit_is_refused_as_by_the_reference() -> None:
    with pytest.raises(ValueError, match="query has 5 rows, the sequences have 4"):
        attend_packed(*states(5, 2, 1, 16, torch.float32), Sequences.of([4], DEVICE), impl=Impl.TRITON)
