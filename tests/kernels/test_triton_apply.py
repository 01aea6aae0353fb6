"""apply_adapters in Triton against the reference in float64: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_benchmarks.popularity import parse_popularities
from xpeft_kernels import AdapterForm, Impl, Norm, PlacedTiles, Tiles, apply_adapters, cut_runs, piece_rows
from xpeft_kernels.apply import launch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# The interpreter's bfloat16 is not a GPU's.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]
HIDDEN = 96
SLOTS = 64

SHAPES: dict[str, tuple[list[int], list[int]]] = {
    "one token": ([2], [1]),
    "one-token runs": (list(range(33)), [1] * 33),
    "137 uneven": ([3, 0, 3, 5, 1], [63, 1, 37, 20, 16]),
    "99 beside 1": ([4, 0], [99, 1]),
    "1 beside 99": ([4, 0], [1, 99]),
    "100 of one": ([1], [100]),
}
POPULARITIES = ["distinct", "uniform", "zipf:1.5", "identical", "skewed"]
KINDS = [
    {"activation": activation, "layer_norm": layer_norm, "down_bias": down, "up_bias": up}
    for activation, layer_norm, down, up in product(("relu", "gelu"), (True, False), (True, False), (True, False))
]


@pytest.fixture(autouse=True)
def poisoned_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN."""
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, torch.nan))


def normal(*shape: int, dtype: torch.dtype, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def rows(form: AdapterForm, dtype: torch.dtype, used: list[int]) -> Tensor:
    """``[S, D]``; slots that no run uses hold NaN."""
    made = normal(SLOTS, form.slot_row, dtype=torch.float32, seed=2) / form.hidden**0.5
    made[[slot for slot in range(SLOTS) if slot not in used]] = torch.nan
    return made.to(dtype)


def check(
    tiles: Tiles, form: AdapterForm, dtype: torch.dtype, *, residual: bool = True, norm: str = "weight and bias"
) -> None:
    """At most twice the error of the reference in the same dtype."""
    hidden, before = normal(2, tiles.tokens, form.hidden, dtype=dtype).unbind()
    table = rows(form, dtype, tiles.runs[:, 0].tolist())
    weight, bias = normal(2, form.hidden, dtype=dtype, seed=5).unbind()
    with_bias = bias if "bias" in norm else None

    def run(impl: Impl, to: torch.dtype) -> Tensor:
        last = Norm(weight.to(to), None if with_bias is None else with_bias.to(to), 1e-5) if norm else None
        return apply_adapters(
            hidden.to(to), table.to(to), tiles, form, residual=before.to(to) if residual else None, norm=last, impl=impl
        )

    with torch.no_grad():
        true = run(Impl.REFERENCE, torch.float64)
        own = (run(Impl.REFERENCE, dtype).double() - true).abs().max()
        found = run(Impl.TRITON, dtype)
    assert found.dtype == dtype
    assert (found.double() - true).abs().max() <= 2 * own


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [8, 48, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_shapes(shape: str, width: int, dtype: torch.dtype) -> None:
    check(Tiles.of(*SHAPES[shape], DEVICE), AdapterForm(HIDDEN, width), dtype)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_adapter(kind: dict[str, bool], dtype: torch.dtype) -> None:
    check(Tiles.of([3, 0, 5], [17, 1, 40], DEVICE), AdapterForm(HIDDEN, 48, **kind), dtype)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm", ["weight and bias", "weight", ""])
def test_residual_and_norm_are_there_or_not(residual: bool, norm: str) -> None:
    check(Tiles.of([3, 0], [17, 20], DEVICE), AdapterForm(HIDDEN, 8), torch.float32, residual=residual, norm=norm)


@pytest.mark.parametrize("hidden", [16, 48, 384, 400])
@pytest.mark.parametrize("width", [5, 16, 100, 256])
def test_other_sizes(hidden: int, width: int) -> None:
    check(Tiles.of([3, 0], [17, 20], DEVICE), AdapterForm(hidden, width), torch.float32)


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_every_popularity(popularity: str) -> None:
    rng = np.random.default_rng(0)
    (drawn,) = (each.draw(24, 24, rng) for each in parse_popularities(popularity))
    lengths = rng.integers(1, 24, 24)
    check(Tiles.of(np.sort(drawn).tolist(), lengths.tolist(), DEVICE), AdapterForm(HIDDEN, 48), DTYPES[-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_runs_bits_do_not_depend_on_its_company(dtype: torch.dtype) -> None:
    form = AdapterForm(HIDDEN, 48, activation="gelu", down_bias=True, up_bias=True)
    lengths = [16, 40, 16, 1, 17, 5, 64, 33, 3]
    slots = list(range(len(lengths)))
    hidden, table = normal(sum(lengths), HIDDEN, dtype=dtype), rows(form, dtype, slots)
    with torch.no_grad():
        together = apply_adapters(hidden, table, Tiles.of(slots, lengths, DEVICE), form, impl=Impl.TRITON)
        for slot, (tokens, found) in enumerate(zip(hidden.split(lengths), together.split(lengths), strict=True)):
            alone = Tiles.of([slot], [len(tokens)], DEVICE)
            assert torch.equal(found, apply_adapters(tokens, table, alone, form, impl=Impl.TRITON))


@pytest.mark.skipif(not GPU, reason="the interpreter multiplies with the CPU's library, a GPU in its own order")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_and_large_tiles_give_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    form, tiles = AdapterForm(768, 48), Tiles.of([3, 0, 3, 5, 1], [63, 1, 37, 20, 16], DEVICE)
    hidden, table = normal(tiles.tokens, 768, dtype=dtype), rows(form, dtype, [0, 1, 3, 5])
    with torch.no_grad():
        small = apply_adapters(hidden, table, tiles, form, impl=Impl.TRITON)
        monkeypatch.setattr(launch, "FEW_TOKENS", 0)
        assert torch.equal(apply_adapters(hidden, table, tiles, form, impl=Impl.TRITON), small)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_placed_table_gives_the_same_bits_and_unused_entries_write_nothing(norm: bool, dtype: torch.dtype) -> None:
    form, runs, tokens = AdapterForm(HIDDEN, 48), Tiles.of([3, 0, 5], [17, 1, 40], DEVICE), 128
    hidden, table = normal(tokens, HIDDEN, dtype=dtype), rows(form, dtype, [3, 0, 5])
    hidden[runs.tokens :] = torch.nan
    weight, bias = normal(2, HIDDEN, dtype=dtype, seed=5).unbind()
    last = Norm(weight, bias, 1e-5) if norm else None
    size = piece_rows(tokens, form, dtype.itemsize)
    cut = torch.from_numpy(cut_runs(runs.runs, size)).to(DEVICE)
    # An entry of length 0 may name a slot that holds NaN and a row that is another's.
    pieces = torch.tensor([[1, 5, 0]] * 12, dtype=torch.int32, device=DEVICE)
    pieces[2 : 2 + len(cut)] = cut
    placed = PlacedTiles(tokens, size, pieces)
    with torch.no_grad():
        found = apply_adapters(hidden, table, placed, form, residual=hidden, norm=last, impl=Impl.TRITON)
        real = hidden[: runs.tokens]
        wanted = apply_adapters(real, table, runs, form, residual=real, norm=last, impl=Impl.TRITON)
    assert torch.equal(found[: runs.tokens], wanted)
    assert found[runs.tokens :].isnan().all()
    assert wanted.isfinite().all()


def test_a_placed_table_of_unused_entries_alone_writes_nothing_at_all() -> None:
    form, used = AdapterForm(HIDDEN, 8), [0]
    placed = PlacedTiles(20, 16, torch.zeros(3, 3, dtype=torch.int32, device=DEVICE))
    hidden, table = normal(20, HIDDEN, dtype=torch.float32), rows(form, torch.float32, used)
    assert apply_adapters(hidden, table, placed, form, impl=Impl.TRITON).isnan().all()


def test_a_table_that_was_cut_otherwise_is_refused() -> None:
    form, placed = AdapterForm(HIDDEN, 8), PlacedTiles(3, 64, torch.zeros(1, 3, dtype=torch.int32, device=DEVICE))
    hidden, table = normal(3, HIDDEN, dtype=torch.float32), rows(form, torch.float32, [0])
    with pytest.raises(ValueError, match="pieces of 64 rows, the kernel takes 16"):
        apply_adapters(hidden, table, placed, form, impl=Impl.TRITON)


def test_what_goes_in_is_left_as_it_was() -> None:
    form, tiles = AdapterForm(HIDDEN, 8), Tiles.of([3, 0], [17, 20], DEVICE)
    given = [normal(tiles.tokens, HIDDEN, dtype=torch.float32), rows(form, torch.float32, [3, 0])]
    copies = [each.clone() for each in given]
    with torch.no_grad():
        apply_adapters(given[0], given[1], tiles, form, residual=given[0], impl=Impl.TRITON)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(given, copies, strict=True))


def test_a_gradient_is_refused_and_not_forgotten() -> None:
    form, tiles = AdapterForm(HIDDEN, 8), Tiles.of([0], [3], DEVICE)
    hidden = normal(3, HIDDEN, dtype=torch.float32).requires_grad_()
    with pytest.raises(ValueError, match=r"no gradient in Triton: ask for impl=Impl.REFERENCE"):
        apply_adapters(hidden, rows(form, torch.float32, [0]), tiles, form, impl=Impl.TRITON)


def test_what_does_not_fit_is_refused_as_by_the_reference() -> None:
    form, tiles = AdapterForm(HIDDEN, 8), Tiles.of([0], [3], DEVICE)
    with pytest.raises(ValueError, match=r"hidden is \(4, 96\), tiles and form say \(3, 96\)"):
        apply_adapters(
            normal(4, HIDDEN, dtype=torch.float32), rows(form, torch.float32, [0]), tiles, form, impl=Impl.TRITON
        )
