"""Padding against PyTorch's own index_select, and the adapters' gradients through it against one token at a time."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from xpeft_kernels import AdapterForm, Padding, Tiles, apply_adapters_ref
from xpeft_kernels.form import LN_EPS

ONE_STACK = [
    ([0], [1]),
    ([2, 5], [1, 99]),
    (list(range(9)), [1] * 9),
    ([4, 1, 4, 4, 0], [33, 37, 50, 2, 16]),
]
SEVERAL_STACKS = [
    ([2, 5], [1, 199]),
    ([3, 0, 3], [130, 2, 260]),
    (list(range(6)), [3, 16, 17, 64, 65, 200]),
]
BATCHES = [*ONE_STACK, *SEVERAL_STACKS]
WIDTHS: list[tuple[int, ...]] = [(), (3,), (2, 3)]


def shuffled(rows: int, padded: int) -> Padding:
    """Rows in no order, between padding that repeats any of them."""
    random = torch.Generator().manual_seed(5)
    scatter = torch.randperm(padded, generator=random)[:rows]
    gather = torch.randint(rows, (padded,), generator=random)
    gather[scatter] = torch.arange(rows)
    return Padding(gather, scatter)


PADDINGS = [*(Tiles.of(*batch).padding for batch in BATCHES), shuffled(30, 47), shuffled(9, 9)]


def shape_of(padding: Padding) -> str:
    return f"{padding.scatter.numel()} in {padding.gather.numel()}"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(out: Tensor, of: Tensor, upstream: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(out, of, upstream)
    return found


def real_rows(padding: Padding) -> Tensor:
    """``[M]`` bool, false on padding."""
    real = torch.zeros(padding.gather.numel(), dtype=torch.bool)
    real[padding.scatter] = True
    return real


@pytest.mark.parametrize(("slots", "lengths"), BATCHES)
def test_every_token_has_one_padded_row_and_finds_back(slots: list[int], lengths: list[int]) -> None:
    tiles = Tiles.of(slots, lengths)
    gather, scatter = tiles.padding
    assert torch.equal(gather[scatter], torch.arange(tiles.tokens))
    assert scatter.unique().numel() == tiles.tokens
    assert torch.equal(gather, torch.cat([stack.gather for stack in tiles.stacks]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("padding", PADDINGS, ids=shape_of)
def test_values_are_those_of_index_select(padding: Padding, asks: bool, width: tuple[int, ...]) -> None:
    rows = normal(padding.scatter.numel(), *width).requires_grad_(asks)
    padded = padding.pad(rows)
    assert torch.equal(padded, rows.index_select(0, padding.gather))
    assert torch.equal(padding.unpad(padded), rows)
    assert padded.requires_grad is padding.unpad(padded).requires_grad is asks


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("padding", PADDINGS, ids=shape_of)
def test_gradients_are_those_of_index_select_where_nobody_reads_the_padding(
    padding: Padding, width: tuple[int, ...]
) -> None:
    rows = normal(padding.scatter.numel(), *width).requires_grad_()
    padded = normal(padding.gather.numel(), *width, seed=1).requires_grad_()
    upstream = normal(*padded.shape, seed=2)
    upstream[~real_rows(padding)] = 0
    wanted = gradient(rows.index_select(0, padding.gather), rows, upstream)
    assert torch.equal(gradient(padding.pad(rows), rows, upstream), wanted)
    wanted = gradient(padded.index_select(0, padding.scatter), padded, upstream[: len(rows)])
    assert torch.equal(gradient(padding.unpad(padded), padded, upstream[: len(rows)]), wanted)


def test_no_gradient_comes_from_padding_or_goes_there() -> None:
    padding = Tiles.of([3, 0, 1], [5, 17, 40]).padding
    real = real_rows(padding)
    assert not real.all()
    rows = normal(62, 3).requires_grad_()
    upstream = normal(real.numel(), 3, seed=1)
    upstream[~real] = torch.nan
    assert torch.equal(gradient(padding.pad(rows), rows, upstream), upstream[padding.scatter])
    padded = normal(real.numel(), 3).requires_grad_()
    found = gradient(padding.unpad(padded), padded, normal(62, 3, seed=2))
    assert torch.equal(found[~real], torch.zeros(int((~real).sum()), 3, dtype=torch.float64))
    assert found[real].all()


@pytest.mark.parametrize("padding", [*PADDINGS[:3], *PADDINGS[-2:]], ids=shape_of)
def test_the_gradient_through_both_is_that_of_finite_differences(padding: Padding) -> None:
    factor = normal(padding.gather.numel(), 2, seed=3)

    def run(rows: Tensor) -> Tensor:
        return padding.unpad((factor * padding.pad(rows)).sin())

    assert torch.autograd.gradcheck(run, normal(padding.scatter.numel(), 2).requires_grad_())


def test_without_gradients_nothing_is_remembered() -> None:
    padding = Tiles.of([0, 1], [3, 20]).padding
    rows = normal(23, 2).requires_grad_()
    with torch.no_grad():
        assert padding.pad(rows).grad_fn is None
        assert padding.unpad(padding.pad(rows)).grad_fn is None


@pytest.mark.parametrize(
    "kind",
    [
        {"activation": activation, "layer_norm": layer_norm, "down_bias": bias, "up_bias": bias}
        for activation, layer_norm, bias in product(("relu", "gelu"), (True, False), (True, False))
    ],
    ids=lambda kind: "-".join(map(str, kind.values())),
)
@pytest.mark.parametrize(("slots", "lengths"), SEVERAL_STACKS)
def test_gradients_through_several_stacks_are_those_of_one_token_at_a_time(
    slots: list[int], lengths: list[int], kind: dict[str, bool]
) -> None:
    form, tiles = AdapterForm(12, 5, **kind), Tiles.of(slots, lengths)
    assert len(tiles.stacks) > 1
    hidden = normal(tiles.tokens, form.hidden).requires_grad_()
    table = normal(max(slots) + 1, form.slot_row, seed=1).requires_grad_()
    upstream = normal(tiles.tokens, form.hidden, seed=2)
    found = apply_adapters_ref(hidden, table, tiles, form)
    owners = [slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)]
    wanted = torch.stack([one_token(h, table[slot], form) for h, slot in zip(hidden, owners, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    expected = torch.autograd.grad(wanted, (hidden, table), upstream)
    for actual, right in zip(torch.autograd.grad(found, (hidden, table), upstream), expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-10, atol=1e-10)


def one_token(h: Tensor, row: Tensor, form: AdapterForm) -> Tensor:
    """``[H]`` through one adapter."""
    hidden, width = form.hidden, form.width
    sizes = [hidden * width, width * form.down_bias, width * hidden, hidden * form.up_bias]
    down, down_bias, up, up_bias, affine = row.split([*sizes, 2 * width * form.layer_norm])
    z = h @ down.view(hidden, width)
    z = z + down_bias if form.down_bias else z
    z = functional.layer_norm(z, (width,), *affine.chunk(2), LN_EPS) if form.layer_norm else z
    z = functional.relu(z) if form.activation == "relu" else functional.gelu(z)
    out = h + z @ up.view(width, hidden)
    return out + up_bias if form.up_bias else out
