"""attend_cache in Triton against the reference in float64: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import Impl, PlacedSteps, attend_cache, cut_steps, step_rows
from xpeft_kernels.attend_cache import SPAN

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# The interpreter's bfloat16 is not a GPU's.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]

STEPS: dict[str, list[tuple[int, int]]] = {
    "first token": [(1, 0)],
    "block edges": [(1, 62), (1, 63), (1, 64), (1, 65)],
    "decode": [(1, past) for past in (499, 0, 3, 17, 130)],
    "63 of a prompt": [(63, 0)],
    "137 in chunks": [(137, 0), (20, 117), (2, 135)],
    "prompts beside decode": [(1, 40), (40, 1), (1, 5), (33, 31), (1, 200)],
    "long beside short": [(1, length - 1) for length in (1, 255, 256, 257, 513, 1100)],
    "prompts over spans": [(6, 253), (2, 511), (1, 511), (1, 300)],
}
"""(new tokens, known tokens) of each sequence."""


class Step(NamedTuple):
    """``base`` is the first cache row of each sequence; what no sequence has is NaN."""

    query: Tensor
    keys: Tensor
    values: Tensor
    runs: np.ndarray
    scale: float

    @property
    def base(self) -> list[int]:
        return self.runs[:, 2].tolist()


@pytest.fixture(autouse=True)
def poisoned_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN, what it keeps for itself included."""
    monkeypatch.setattr(torch, "empty", lambda shape, **kinds: torch.full(shape, torch.nan, **kinds))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def step(sequences: list[tuple[int, int]], heads: int, kv_heads: int, d: int, *, strided: bool = False) -> Step:
    """Sequences in no order in one block of a cache. ``strided``: the query as a model hands it, heads first."""
    new, past = np.array(sequences).T
    gaps = np.random.default_rng(4).integers(0, 90, len(sequences))
    order = np.random.default_rng(5).permutation(len(sequences))
    ends = np.empty(len(sequences), np.int64)
    ends[order] = np.cumsum((new + past + gaps)[order])
    base = ends - new - past
    tokens = int(ends.max()) + 7
    arena = torch.full((2, 2, tokens, kv_heads, d), torch.nan, device=DEVICE)
    for number, (start, end) in enumerate(zip(base, ends, strict=True)):
        arena[1, :, start:end] = normal(2, end - start, kv_heads, d, seed=number)
    query = normal(heads, int(new.sum()), d, seed=99).transpose(0, 1)
    runs = np.stack([np.cumsum(new) - new, new, base, past], axis=1)
    return Step(query if strided else query.contiguous(), arena[1, 0], arena[1, 1], runs, d**-0.5)


def run(
    step: Step,
    impl: Impl,
    dtype: torch.dtype,
    *,
    window: int | None = None,
    unused: int = 0,
    spare: int = 100,
    order: Sequence[int] | None = None,
) -> Tensor:
    """Args: unused: pieces, joins and parts that the step does not have. order: of the pieces."""
    group = step.query.shape[1] // step.keys.shape[1]
    rows = step_rows(group, step.query.shape[2], min(dtype.itemsize, 4))
    pieces, joins, parts = cut_steps(step.runs, rows, spare=spare)
    pieces = np.insert(pieces if order is None else pieces[order], [0] * unused, [7, 0, 1 << 30, 1 << 30, 0, 0, 0], 0)
    joins = np.insert(joins, [0] * unused, [0, 1 << 30, 0], 0)
    query, keys, values = (each.to(dtype) for each in step[:3])
    placed = PlacedSteps(torch.from_numpy(pieces).to(DEVICE), torch.from_numpy(joins).to(DEVICE), parts + unused)
    return attend_cache(query, keys, values, placed, scale=step.scale, window=window, impl=impl)


def check(step: Step, dtype: torch.dtype, *, window: int | None = None) -> None:
    """At most twice the error of the reference in the same dtype."""
    query, keys, values = (each.to(dtype) for each in step[:3])
    rounded = step._replace(query=query, keys=keys, values=values)
    true = run(rounded, Impl.REFERENCE, torch.float64, window=window)
    own = (run(step, Impl.REFERENCE, dtype, window=window).double() - true).abs().max()
    found = run(step, Impl.TRITON, dtype, window=window)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert (found.double() - true).abs().max() <= 2 * own


@pytest.mark.parametrize("sequences", STEPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_steps(sequences: str, dtype: torch.dtype) -> None:
    check(step(STEPS[sequences], 4, 2, 64), dtype)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (6, 1), (24, 8), (40, 1), (5, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_query_heads_shares_a_key(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    check(step([(1, 70), (11, 30)], heads, kv_heads, 32), dtype)


@pytest.mark.parametrize("d", [8, 24, 32, 80, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_sizes_of_heads(d: int, dtype: torch.dtype) -> None:
    check(step([(1, 70), (11, 30)], 4, 2, d), dtype)


@pytest.mark.parametrize(
    ("sequences", "window"),
    [*product(("block edges", "prompts beside decode"), (1, 7, 64, 1000)), ("long beside short", 300)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_window_hides_what_is_too_far(sequences: str, window: int, dtype: torch.dtype) -> None:
    check(step(STEPS[sequences], 4, 2, 32), dtype, window=window)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    sequences = STEPS["prompts beside decode"]
    assert not step(sequences, 4, 2, 32, strided=True).query.is_contiguous()
    check(step(sequences, 4, 2, 32, strided=True), dtype)
    found, contiguous = (
        run(step(sequences, 4, 2, 32, strided=strided), Impl.TRITON, dtype) for strided in (True, False)
    )
    assert torch.equal(found, contiguous)


@pytest.mark.parametrize("past", [130, 700])
def test_pieces_without_query_rows_do_nothing_and_rows_without_a_piece_are_not_written(past: int) -> None:
    given = step([*STEPS["decode"][:4], (1, past)], 4, 2, 32)
    whole = run(given, Impl.TRITON, torch.float32, unused=5)
    assert torch.equal(whole, run(given, Impl.TRITON, torch.float32))
    some = run(given._replace(runs=given.runs[[0, 3]]), Impl.TRITON, torch.float32, unused=1)
    assert torch.equal(some[[0, 3]], whole[[0, 3]])
    assert some[[1, 2, 4]].isnan().all()
    assert run(given._replace(runs=given.runs[:0]), Impl.TRITON, torch.float32, unused=2).isnan().all()
    assert run(given._replace(runs=given.runs[:0]), Impl.TRITON, torch.float32).isnan().all()


@pytest.mark.parametrize(
    ("sequences", "heads", "kv_heads", "window"),
    [
        ("long beside short", 4, 1, None),
        ("long beside short", 3, 1, 300),
        ("prompts over spans", 40, 1, None),
        ("prompts over spans", 3, 1, 300),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_how_keys_are_cut_nor_on_the_order_of_pieces(
    dtype: torch.dtype, heads: int, kv_heads: int, sequences: str, window: int | None
) -> None:
    """From one program a sequence to one a span."""
    given = step(STEPS[sequences], heads, kv_heads, 24)
    whole = run(given, Impl.TRITON, dtype, window=window, spare=0)
    assert whole.isfinite().all()
    rows = step_rows(heads // kv_heads, 24, dtype.itemsize)
    for spare in (3, 100):
        count = len(cut_steps(given.runs, rows, spare=spare).pieces)
        order = np.random.default_rng(spare).permutation(count).tolist()
        assert torch.equal(run(given, Impl.TRITON, dtype, window=window, spare=spare, order=order), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_long_sequences_bits_do_not_depend_on_its_company(dtype: torch.dtype) -> None:
    given = step(STEPS["long beside short"], 4, 2, 32)
    together = run(given, Impl.TRITON, dtype, spare=6)
    for number in (3, 4, 5):
        first, count, base, past = given.runs[number].tolist()
        rows, seen = slice(first, first + 1), slice(base, base + past + 1)
        own = Step(
            given.query[rows], given.keys[seen], given.values[seen], np.array([[0, count, 0, past]]), given.scale
        )
        for spare in (0, 100):
            assert torch.equal(run(own, Impl.TRITON, dtype, spare=spare), together[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_prompt_reads_the_bits_that_its_tokens_would_have_read_one_by_one(dtype: torch.dtype) -> None:
    """Over the edge of two spans."""
    past = 2 * SPAN - 5
    given = step([(12, past)], 4, 1, 16)
    whole = run(given, Impl.TRITON, dtype)
    base = given.base[0]
    for chunks in ([1] * 12, [5, 7], [3, 1, 1, 1, 1, 5]):
        starts = np.cumsum(chunks) - chunks
        runs = np.stack([starts, chunks, np.full(len(chunks), base), past + starts], axis=1)
        assert torch.equal(run(given._replace(runs=runs), Impl.TRITON, dtype), whole)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequences_bits_do_not_depend_on_its_company_or_its_place(dtype: torch.dtype, window: int | None) -> None:
    given = step(STEPS["prompts beside decode"], 4, 2, 32)
    together = run(given, Impl.TRITON, dtype, window=window)
    for first, count, base, past in given.runs.tolist():
        rows, seen = slice(first, first + count), slice(base, base + count + past)
        own = given._replace(
            query=given.query[rows],
            keys=given.keys[seen],
            values=given.values[seen],
            runs=np.array([[0, count, 0, past]]),
        )
        assert torch.equal(run(own, Impl.TRITON, dtype, window=window), together[rows])


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tokens_bits_do_not_depend_on_how_its_prompt_was_cut(dtype: torch.dtype, window: int | None) -> None:
    given = step([(70, 0)], 4, 1, 32)
    whole = run(given, Impl.TRITON, dtype, window=window)
    base = given.base[0]
    for chunks in ([1] * 10 + [60], [37, 1, 20, 12], [69, 1]):
        starts = np.cumsum(chunks) - chunks
        runs = np.stack([starts, chunks, np.full(len(chunks), base), starts], axis=1)
        assert torch.equal(run(given._replace(runs=runs), Impl.TRITON, dtype, window=window), whole)


def test_what_goes_in_is_left_as_it_was() -> None:
    given = step(STEPS["prompts beside decode"], 4, 2, 32)
    copies = [each.clone() for each in given[:3]]
    run(given, Impl.TRITON, torch.float32)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(given[:3], copies, strict=True))


def test_a_gradient_and_float64_are_refused() -> None:
    given = step([(1, 3)], 4, 2, 32)
    with pytest.raises(ValueError, match=r"no torch.float64 in Triton: ask for impl=Impl.REFERENCE"):
        run(given, Impl.TRITON, torch.float64)
    with pytest.raises(ValueError, match=r"no gradient in Triton: ask for impl=Impl.REFERENCE"):
        run(given._replace(query=given.query.requires_grad_()), Impl.TRITON, torch.float32)


def test_what_does_not_fit_is_refused_as_by_the_reference() -> None:
    given = step([(1, 3)], 4, 2, 32)
    with pytest.raises(ValueError, match=r"query \(1, 4, 32\), keys \(\d+, 2, 16\) and values \(\d+, 2, 16\)"):
        run(given._replace(keys=given.keys[..., :16], values=given.values[..., :16]), Impl.TRITON, torch.float32)
