"""aggregate_adapters in Triton against the reference in float64: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import AdapterForm, Impl, aggregate_adapters
from xpeft_kernels.aggregate import kernel

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]
L = 2
SIZES = list(product((1, 7, 100, 400), (8, 48, 64)))
"""Adapters, and how wide each is."""
if os.environ.get("NIGHTLY") != "1":
    SIZES = [(1, 8), (7, 48), (100, 8), (100, 64), (400, 48)]


def hard_masks(profiles: int, adapters: int) -> Tensor:
    """``[P, 2, L, ⌈N / 8⌉]`` bits, another k each row."""
    rng = np.random.default_rng(0)
    ranks = rng.random((profiles, 2, L, adapters)).argsort(-1).argsort(-1)
    chosen = ranks < rng.integers(1, adapters + 1, (profiles, 2, L, 1))
    return torch.from_numpy(np.packbits(chosen, axis=-1, bitorder="little")).to(DEVICE)


def soft_masks(profiles: int, adapters: int, dtype: torch.dtype = torch.float16) -> Tensor:
    values = torch.randn(profiles, 2, L, adapters, generator=torch.Generator().manual_seed(0))
    return values.softmax(-1).to(DEVICE, dtype)


def bank_of(form: AdapterForm, adapters: int, dtype: torch.dtype) -> Tensor:
    made = torch.randn(L, adapters, form.bank_row, generator=torch.Generator().manual_seed(1))
    return made.to(DEVICE, dtype)


def filled(bank: Tensor, masks: Tensor, form: AdapterForm, ids: list[int], slots: int, impl: Impl) -> Tensor:
    out = torch.full((L, slots, form.slot_row), torch.nan, dtype=bank.dtype, device=DEVICE)
    aggregate_adapters(bank, masks, out, torch.tensor(ids, device=DEVICE), split=form.split, impl=impl)
    return out


def weights_of(masks: Tensor, adapters: int) -> Tensor:
    """``[P, 2, L, N]`` float64."""
    if masks.is_floating_point():
        return masks.double()
    bits = torch.from_numpy(np.unpackbits(masks.cpu().numpy(), axis=-1, count=adapters, bitorder="little"))
    return (bits.double() / bits.sum(-1, keepdim=True)).to(DEVICE)


def check(bank: Tensor, masks: Tensor, form: AdapterForm, ids: list[int], slots: int) -> None:
    """A float32 sum of N products in any order is within (N + 2)·2⁻²⁴·Σ|term|; then one rounding to the dtype."""
    found = filled(bank, masks, form, ids, slots, Impl.TRITON)
    weights, values = weights_of(masks, bank.shape[1]), bank.double()
    total, size = (
        torch.cat([torch.einsum("pln,lnd->lpd", weights[:, side], part) for side, part in enumerate(parts)], dim=-1)
        for parts in (values.tensor_split([form.split], -1), values.abs().tensor_split([form.split], -1))
    )
    bound = (bank.shape[1] + 2) * 2**-24 * size
    if bank.dtype != torch.float32:
        bound = bound + torch.finfo(bank.dtype).eps / 2 * (total.abs() + bound) + torch.finfo(bank.dtype).tiny
    assert ((found[:, ids, : form.bank_row].double() - total).abs() <= bound).all()
    assert found[:, [slot for slot in range(slots) if slot not in ids]].isnan().all()
    assert found[:, :, form.bank_row :].isnan().all()


@pytest.mark.parametrize(("adapters", "width"), SIZES)
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_sizes(adapters: int, width: int, soft: bool, dtype: torch.dtype) -> None:
    form = AdapterForm(16, width)
    masks = soft_masks(3, adapters) if soft else hard_masks(3, adapters)
    check(bank_of(form, adapters, dtype), masks, form, [4, 0, 2], 6)


@pytest.mark.parametrize("profiles", [1, 16, 17, 33])
@pytest.mark.parametrize("soft", [True, False])
def test_any_number_of_profiles(profiles: int, soft: bool) -> None:
    form = AdapterForm(32, 8)
    masks = soft_masks(profiles, 100) if soft else hard_masks(profiles, 100)
    ids = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:profiles].tolist()
    check(bank_of(form, 100, torch.float32), masks, form, ids, 40)


@pytest.mark.parametrize("biases", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_each_masks_bias_goes_with_its_own_half_of_the_row(biases: tuple[bool, bool], layer_norm: bool) -> None:
    form = AdapterForm(10, 3, down_bias=biases[0], up_bias=biases[1], layer_norm=layer_norm)
    check(bank_of(form, 5, torch.float32), soft_masks(2, 5), form, [1, 0], 2)


def test_soft_weights_in_float32_keep_their_precision_over_a_16_bit_bank() -> None:
    form = AdapterForm(16, 8)
    check(bank_of(form, 100, torch.float16), soft_masks(3, 100, torch.float32), form, [0, 1, 2], 3)


@pytest.mark.parametrize(("profiles", "width"), [(1, 8192), (16384, 1024), (1 << 20, 16)])
def test_neither_wide_rows_nor_many_profiles_make_a_grid_that_cuda_refuses(
    monkeypatch: pytest.MonkeyPatch, profiles: int, width: int
) -> None:
    grids: list[tuple[int, ...]] = []

    class Noted:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *_, **__: None

    monkeypatch.setattr(kernel, "_aggregate_adapters_kernel", Noted())
    form = AdapterForm(8192, width)
    bank, slots = (torch.empty(L, 13, row, device="meta") for row in (form.bank_row, form.slot_row))
    masks = torch.empty(profiles, 2, L, 2, dtype=torch.uint8, device="meta")
    kernel.aggregate_adapters_triton(bank, masks, slots, torch.empty(profiles, device="meta"), split=form.split)
    assert all(size <= most for size, most in zip(grids[0], (2**31 - 1, 65535, 65535), strict=False))


def test_the_bits_behind_the_last_adapter_mean_nothing() -> None:
    form = AdapterForm(8, 4)
    masks, bank = hard_masks(2, 13), bank_of(form, 13, torch.float32)
    dirty = masks.clone()
    dirty[..., -1] |= 0b11100000
    found = [filled(bank, each, form, [0, 1], 2, Impl.TRITON)[..., : form.bank_row] for each in (masks, dirty)]
    assert torch.equal(*found)


def test_no_profile_at_all_writes_nothing() -> None:
    form = AdapterForm(8, 4)
    assert filled(bank_of(form, 13, torch.float32), hard_masks(0, 13), form, [], 2, Impl.TRITON).isnan().all()


def test_what_does_not_fit_is_refused_as_by_the_reference() -> None:
    form = AdapterForm(8, 4)
    with pytest.raises(ValueError, match=r"masks are \(2, 2, 2, 2\), the bank needs \(2, 2, 2, 1\)"):
        filled(bank_of(form, 7, torch.float32), hard_masks(2, 13), form, [0, 1], 2, Impl.TRITON)
