"""apply_adapters against one token at a time in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from xpeft_kernels import AdapterForm, Norm, PlacedTiles, Tiles, apply_adapters, apply_adapters_even, cut_runs

SHAPES: dict[str, tuple[list[int], list[int]]] = {
    "one token": ([2], [1]),
    "one-token runs": (list(range(63)), [1] * 63),
    "137 uneven": ([3, 0, 3, 5, 1], [63, 1, 37, 20, 16]),
    "499 beside 1": ([4, 0], [499, 1]),
    "1 beside 499": ([4, 0], [1, 499]),
    "500 of one": ([1], [500]),
}
KINDS = [
    {"activation": activation, "layer_norm": layer_norm, "down_bias": bias, "up_bias": bias}
    for activation, layer_norm, bias in product(("relu", "gelu"), (True, False), (True, False))
]
SLOTS = 70


def rows(form: AdapterForm, dtype: torch.dtype, used: list[int]) -> Tensor:
    """``[S, D]`` adapters whose output is as large as their input; slots that no run uses hold NaN."""
    made = torch.randn(SLOTS, form.slot_row, generator=torch.Generator().manual_seed(2)) / math.sqrt(form.hidden)
    made[[slot for slot in range(SLOTS) if slot not in used]] = torch.nan
    return made.to(dtype)


def normal(*shape: int, dtype: torch.dtype, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def one_token(h: Tensor, row: Tensor, form: AdapterForm) -> Tensor:
    """``[H]`` through one adapter, in the dtype of both."""
    hidden, width = form.hidden, form.width
    parts = iter(row.split(part_sizes(form)))
    z = h @ next(parts).view(hidden, width)
    if form.down_bias:
        z = z + next(parts)
    up = next(parts).view(width, hidden)
    up_bias = next(parts) if form.up_bias else 0
    if form.layer_norm:
        z = (z - z.mean()) / torch.sqrt(((z - z.mean()) ** 2).mean() + 1e-5) * next(parts) + next(parts)
    z = z.clamp(min=0) if form.activation == "relu" else 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    return h + z @ up + up_bias


def part_sizes(form: AdapterForm) -> list[int]:
    hidden, width = form.hidden, form.width
    biases = [width] if form.down_bias else [], [hidden] if form.up_bias else []
    return [hidden * width, *biases[0], width * hidden, *biases[1], *([width, width] if form.layer_norm else [])]


def expected(
    hidden: Tensor, slots: Tensor, tiles: Tiles, form: AdapterForm, residual: Tensor | None, norm: Norm | None
) -> Tensor:
    """``[T, H]``, token by token."""
    out = []
    for slot, start, length in tiles.runs.tolist():
        for t in range(start, start + length):
            token = one_token(hidden[t], slots[slot], form)
            token = token if residual is None else token + residual[t]
            if norm is not None:
                centred = token - token.mean()
                token = centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight
                token = token if norm.bias is None else token + norm.bias
            out.append(token)
    return torch.stack(out)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [8, 48, 64])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_in_float64_it_is_the_equation(shape: str, width: int, kind: dict[str, bool]) -> None:
    slots, lengths = SHAPES[shape]
    form, tiles = AdapterForm(24, width, **kind), Tiles.of(slots, lengths)
    hidden, table = normal(tiles.tokens, 24, dtype=torch.float64), rows(form, torch.float64, slots)
    found = apply_adapters(hidden, table, tiles, form)
    torch.testing.assert_close(found, expected(hidden, table, tiles, form, None, None), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("has_norm", ["weight and bias", "weight", ""])
def test_residual_and_norm_come_after_the_adapter(shape: str, has_residual: bool, has_norm: str) -> None:
    slots, lengths = SHAPES[shape]
    form, tiles = AdapterForm(24, 8), Tiles.of(slots, lengths)
    hidden, table = normal(tiles.tokens, 24, dtype=torch.float64), rows(form, torch.float64, slots)
    residual = normal(tiles.tokens, 24, dtype=torch.float64, seed=4) if has_residual else None
    weight, bias = normal(2, 24, dtype=torch.float64, seed=5)
    norm = Norm(weight, bias if "bias" in has_norm else None, 1e-3) if has_norm else None
    found = apply_adapters(hidden, table, tiles, form, residual=residual, norm=norm)
    torch.testing.assert_close(found, expected(hidden, table, tiles, form, residual, norm), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_in_low_precision_it_errs_at_most_twice_as_much_as_plain_pytorch(
    dtype: torch.dtype, kind: dict[str, bool]
) -> None:
    slots, lengths = SHAPES["137 uneven"]
    form, tiles = AdapterForm(64, 16, **kind), Tiles.of(slots, lengths)
    hidden, residual = normal(2, tiles.tokens, 64, dtype=dtype)
    table = rows(form, dtype, slots)
    norm = Norm(*normal(2, 64, dtype=dtype, seed=5), 1e-5)
    true = expected(hidden.double(), table.double(), tiles, form, residual.double(), Norm(*map(double, norm)))
    plain = expected(hidden, table, tiles, form, residual, norm)
    found = apply_adapters(hidden, table, tiles, form, residual=residual, norm=norm)
    assert found.dtype == dtype
    assert (found.double() - true).abs().max() <= 2 * (plain.double() - true).abs().max()


def double(value: Tensor | float | None) -> Tensor | float | None:
    return value.double() if isinstance(value, Tensor) else value


def test_what_goes_in_is_left_as_it_was() -> None:
    slots, lengths = SHAPES["137 uneven"]
    form, tiles = AdapterForm(24, 8, up_bias=True), Tiles.of(slots, lengths)
    arguments = [normal(tiles.tokens, 24, dtype=torch.float32), rows(form, torch.float32, slots)]
    residual = normal(tiles.tokens, 24, dtype=torch.float32)
    copies = [each.clone() for each in (*arguments, residual)]
    apply_adapters(*arguments, tiles, form, residual=residual)
    for before, after in zip(copies, (*arguments, residual), strict=True):
        assert torch.equal(before.nan_to_num(), after.nan_to_num())


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_runs_bits_do_not_depend_on_its_company(layer_norm: bool, threads: int) -> None:
    form = AdapterForm(96, 48, activation="gelu", layer_norm=layer_norm, down_bias=True, up_bias=True)
    lengths = [16, 40, 16, 1, 17, 5, 130, 64, 33, 16, 3]
    slots = list(range(len(lengths)))
    hidden, table = normal(sum(lengths), 96, dtype=torch.float32), rows(form, torch.float32, slots)
    torch.set_num_threads(threads)
    together = apply_adapters(hidden, table, Tiles.of(slots, lengths), form).split(lengths)
    for slot, (tokens, found) in enumerate(zip(hidden.split(lengths), together, strict=True)):
        assert torch.equal(found, apply_adapters(tokens, table, Tiles.of([slot], [len(tokens)]), form))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_gradients_of_tokens_slots_and_residual_are_right(kind: dict[str, bool]) -> None:
    form, tiles = AdapterForm(5, 3, **kind), Tiles.of([1, 0, 1], [2, 3, 1])
    hidden, residual = normal(2, 6, 5, dtype=torch.float64).unbind()
    table = normal(2, form.slot_row, dtype=torch.float64, seed=6)
    norm = Norm(*normal(2, 5, dtype=torch.float64, seed=5), 1e-5)

    def run(hidden: Tensor, table: Tensor, residual: Tensor) -> Tensor:
        return apply_adapters(hidden, table, tiles, form, residual=residual, norm=norm)

    with torch.enable_grad():
        asked = [each.clone().requires_grad_() for each in (hidden, table, residual)]
        assert torch.autograd.gradcheck(run, asked)


def test_with_and_without_gradients_the_values_are_the_same() -> None:
    slots, lengths = SHAPES["137 uneven"]
    form, tiles = AdapterForm(24, 8, down_bias=True, up_bias=True), Tiles.of(slots, lengths)
    hidden, table = normal(tiles.tokens, 24, dtype=torch.float32), rows(form, torch.float32, slots)
    without = apply_adapters(hidden, table, tiles, form)
    with torch.enable_grad():
        asked = apply_adapters(hidden.clone().requires_grad_(), table, tiles, form)
    torch.testing.assert_close(asked.detach(), without, rtol=0, atol=1e-5)


def test_a_table_that_is_on_the_device_is_refused_because_the_runs_are_not_here() -> None:
    form, tiles = AdapterForm(24, 8), Tiles.of([0, 2], [3, 4])
    placed = PlacedTiles(tiles.tokens, 16, torch.from_numpy(cut_runs(tiles.runs, 16)))
    hidden, table = normal(tiles.tokens, 24, dtype=torch.float32), rows(form, torch.float32, [0, 2])
    with pytest.raises(ValueError, match=r"the reference needs the runs on the host, in Tiles, not PlacedTiles"):
        apply_adapters(hidden, table, placed, form)


@pytest.mark.parametrize(
    ("hidden", "slots", "residual", "message"),
    [
        ((6, 24), (3, 400), None, r"hidden is \(6, 24\), tiles and form say \(7, 24\)"),
        ((7, 25), (3, 400), None, r"hidden is \(7, 25\), tiles and form say \(7, 24\)"),
        ((7, 24), (3, 399), None, "slot rows have 399 elements, the form needs 400"),
        ((7, 24), (3, 400), (1, 24), r"residual is \(1, 24\), hidden \(7, 24\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_shape(
    hidden: tuple[int, int], slots: tuple[int, int], residual: tuple[int, int] | None, message: str
) -> None:
    form, tiles = AdapterForm(24, 8), Tiles.of([0, 2], [3, 4])
    with pytest.raises(ValueError, match=message):
        apply_adapters(
            torch.zeros(hidden),
            torch.zeros(slots),
            tiles,
            form,
            residual=None if residual is None else torch.zeros(residual),
        )


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("finished", [False, True], ids=["adapter alone", "with residual and norm"])
def test_even_slots_are_as_any_others_with_their_gradients(kind: dict[str, Any], finished: bool) -> None:
    form = AdapterForm(hidden=12, width=5, **kind)
    slots = rows(form, torch.float64, [0, 1, 2])[:3]
    hidden, residual = (normal(3 * 7, 12, dtype=torch.float64, seed=seed) for seed in (3, 4))
    norm = Norm(normal(12, dtype=torch.float64, seed=5), normal(12, dtype=torch.float64, seed=6), 1e-6)
    rest: dict[str, Any] = {"residual": residual, "norm": norm} if finished else {}
    weight, found = normal(3 * 7, 12, dtype=torch.float64, seed=7), []
    tiles = Tiles.of([0, 1, 2], [7, 7, 7])
    for apply in (
        lambda h, s: apply_adapters_even(h, s, form, **rest),
        lambda h, s: apply_adapters(h, s, tiles, form, **rest),
    ):
        with torch.enable_grad():
            leaves = [each.clone().requires_grad_() for each in (hidden, slots)]
            out = apply(*leaves)
            found.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_even_slots_leave_what_they_are_given_as_it_is() -> None:
    form = AdapterForm(hidden=12, width=5)
    slots, hidden = rows(form, torch.float32, [0, 1])[:2], normal(6, 12, dtype=torch.float32)
    before = hidden.clone()
    out = apply_adapters_even(hidden, slots, form, residual=hidden)
    assert torch.equal(hidden, before)
    assert not torch.equal(out, before)


@pytest.mark.parametrize(
    ("tokens", "width", "row", "message"),
    [
        (7, 12, 0, r"hidden is \(7, 12\), it must be as many tokens for each of 2 slots"),
        (0, 12, 0, r"hidden is \(0, 12\), it must be"),
        (6, 11, 0, r"hidden is \(6, 11\), it must be"),
        (6, 12, 1, "slot rows have"),
    ],
)
def test_even_slots_of_other_shapes_are_refused(tokens: int, width: int, row: int, message: str) -> None:
    form = AdapterForm(hidden=12, width=5)
    with pytest.raises(ValueError, match=message):
        apply_adapters_even(torch.zeros(tokens, width), torch.zeros(2, form.slot_row + row), form)
    with pytest.raises(ValueError, match=r"residual is \(5, 12\)"):
        apply_adapters_even(torch.zeros(6, 12), torch.zeros(2, form.slot_row), form, residual=torch.zeros(5, 12))
