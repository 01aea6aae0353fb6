"""aggregate_adapters against loops in float64, within the bound that any order of a float32 sum keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import AdapterForm, aggregate_adapters, aggregate_adapters_ref

L = 2


def hard_masks(profiles: int, adapters: int, seed: int = 0) -> np.ndarray:
    """``[P, 2, L, N]`` bool, another k each profile, the same in all its rows."""
    rng = np.random.default_rng(seed)
    ranks = rng.random((profiles, 2, L, adapters)).argsort(-1).argsort(-1)
    return ranks < rng.integers(1, adapters + 1, (profiles, 1, 1, 1))


def packed(masks: np.ndarray) -> Tensor:
    return torch.from_numpy(np.packbits(masks, axis=-1, bitorder="little"))


def soft_masks(profiles: int, adapters: int, seed: int = 0) -> Tensor:
    return torch.randn(profiles, 2, L, adapters, generator=torch.Generator().manual_seed(seed)).softmax(-1).half()


def bank_of(form: AdapterForm, adapters: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(L, adapters, form.bank_row, generator=torch.Generator().manual_seed(1)).to(dtype)


def poisoned_slots(form: AdapterForm, slots: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((L, slots, form.slot_row), torch.nan, dtype=dtype)


def filled(bank: Tensor, masks: Tensor, form: AdapterForm, ids: list[int], slots: int) -> Tensor:
    out = poisoned_slots(form, slots, bank.dtype)
    aggregate_adapters(bank, masks, out, torch.tensor(ids), split=form.split)
    return out


def expected(bank: Tensor, weights: Tensor, form: AdapterForm) -> tuple[Tensor, Tensor]:
    """``[L, P, D]`` float64 sums, adapter by adapter, and the same sums of absolute values."""
    total = torch.zeros(L, len(weights), form.bank_row, dtype=torch.float64)
    size = torch.zeros_like(total)
    for p in range(len(weights)):
        for block in range(L):
            for n in range(bank.shape[1]):
                for side, part in enumerate((slice(0, form.split), slice(form.split, None))):
                    term = weights[p, side, block, n] * bank[block, n, part].double()
                    total[block, p, part] += term
                    size[block, p, part] += term.abs()
    return total, size


def check(found: Tensor, bank: Tensor, weights: Tensor, form: AdapterForm) -> None:
    """A float32 sum of N products in any order is within (N + 2)·2⁻²⁴·Σ|term|; then one rounding to the dtype."""
    total, size = expected(bank, weights, form)
    bound = (bank.shape[1] + 2) * 2**-24 * size
    if found.dtype != torch.float32:
        bound = bound + torch.finfo(found.dtype).eps / 2 * (total.abs() + bound) + torch.finfo(found.dtype).tiny
    assert ((found[..., : form.bank_row].double() - total).abs() <= bound).all()


@pytest.mark.parametrize("adapters", [1, 7, 100, 400])
@pytest.mark.parametrize("width", [8, 48, 64])
def test_hard_masks_average_what_they_select(adapters: int, width: int) -> None:
    form = AdapterForm(16, width)
    masks, bank = hard_masks(3, adapters), bank_of(form, adapters)
    found = filled(bank, packed(masks), form, [4, 0, 2], 6)
    weights = torch.from_numpy(masks / masks.sum(-1, keepdims=True))
    check(found[:, [4, 0, 2]], bank, weights, form)


@pytest.mark.parametrize("adapters", [1, 7, 100, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_soft_masks_are_taken_as_they_are(adapters: int, dtype: torch.dtype) -> None:
    form = AdapterForm(16, 8)
    masks, bank = soft_masks(3, adapters), bank_of(form, adapters, dtype)
    found = filled(bank, masks, form, [1, 2, 3], 4)
    assert found.dtype == dtype
    check(found[:, [1, 2, 3]], bank, masks.double(), form)


@pytest.mark.parametrize("biases", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_each_masks_bias_goes_with_its_own_half_of_the_row(biases: tuple[bool, bool], layer_norm: bool) -> None:
    form = AdapterForm(10, 3, down_bias=biases[0], up_bias=biases[1], layer_norm=layer_norm)
    masks, bank = soft_masks(2, 5), bank_of(form, 5)
    check(filled(bank, masks, form, [0, 1], 2), bank, masks.double(), form)


@pytest.mark.parametrize("biases", [(False, False), (True, False), (False, True), (True, True)])
def test_hard_masks_add_up_pieces_of_each_half(biases: tuple[bool, bool]) -> None:
    form = AdapterForm(128, 64, down_bias=biases[0], up_bias=biases[1])
    masks, bank = hard_masks(8, 9), bank_of(form, 9)
    assert {bool(mask.sum(-1).max() * 2 <= 9) for mask in masks} == {True, False}
    ids = [3, 0, 7, 5, 1, 2, 4, 6]
    found = filled(bank, packed(masks), form, ids, 8)[:, ids]
    check(found, bank, torch.from_numpy(masks / masks.sum(-1, keepdims=True)), form)


def test_slots_may_be_narrower_than_the_bank() -> None:
    form = AdapterForm(16, 8)
    masks, bank = hard_masks(6, 20), bank_of(form, 20)
    out = poisoned_slots(form, 6, torch.bfloat16)
    aggregate_adapters(bank, packed(masks), out, torch.arange(6), split=form.split)
    check(out, bank, torch.from_numpy(masks / masks.sum(-1, keepdims=True)), form)


def test_the_bits_behind_the_last_adapter_mean_nothing() -> None:
    form = AdapterForm(8, 4)
    masks, bank = packed(hard_masks(2, 13)), bank_of(form, 13)
    dirty = masks.clone()
    dirty[..., -1] |= 0b11100000
    clean = filled(bank, masks, form, [0, 1], 2)
    assert torch.equal(filled(bank, dirty, form, [0, 1], 2)[..., : form.bank_row], clean[..., : form.bank_row])


@pytest.mark.parametrize("soft", [True, False])
def test_slots_that_are_not_written_and_the_affine_stay_as_they_were(soft: bool) -> None:
    form = AdapterForm(8, 4, down_bias=True)
    masks = soft_masks(3, 9) if soft else packed(hard_masks(3, 9))
    found = filled(bank_of(form, 9), masks, form, [6, 1, 3], 8)
    assert found[:, [0, 2, 4, 5, 7]].isnan().all()
    assert found[:, [1, 3, 6], : form.bank_row].isfinite().all()
    assert found[:, :, form.bank_row :].isnan().all()


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_slots_bits_depend_neither_on_its_place_nor_on_who_is_filled_with_it(soft: bool, threads: int) -> None:
    form = AdapterForm(32, 8)
    bank = bank_of(form, 100)
    masks = soft_masks(40, 100) if soft else packed(hard_masks(40, 100))
    torch.set_num_threads(threads)
    alone = torch.cat([filled(bank, masks[p : p + 1], form, [0], 1) for p in range(40)], dim=1)
    for count in (2, 15, 16, 17, 33, 40):
        ids = torch.randperm(80, generator=torch.Generator().manual_seed(count))[:count].tolist()
        found = filled(bank, masks[-count:], form, ids, 80)[:, ids]
        assert torch.equal(found[..., : form.bank_row], alone[:, -count:, : form.bank_row])


def test_what_is_called_is_the_reference_on_cpu() -> None:
    form = AdapterForm(8, 4)
    bank, masks = bank_of(form, 9), soft_masks(2, 9)
    direct = poisoned_slots(form, 2)
    aggregate_adapters_ref(bank, masks, direct, torch.tensor([0, 1]), split=form.split)
    assert torch.equal(direct.nan_to_num(), filled(bank, masks, form, [0, 1], 2).nan_to_num())


@pytest.mark.parametrize(
    ("masks", "slots", "split", "message"),
    [
        (torch.zeros(2, 2, L, 1, dtype=torch.uint8), (L, 3, 72), 32, r"\(2, 2, 2, 1\), .* \(2, 2, 2, 2\)"),
        (torch.zeros(2, 2, L, 2), (L, 3, 72), 32, r"\(2, 2, 2, 2\), .* \(2, 2, 2, 9\)"),
        (torch.zeros(1, 2, L, 9), (L, 3, 72), 32, r"\(1, 2, 2, 9\), .* \(2, 2, 2, 9\)"),
        (torch.zeros(2, 1, L, 9), (L, 3, 72), 32, r"\(2, 1, 2, 9\)"),
        (torch.zeros(2, 2, L, 9), (L + 1, 3, 72), 32, r"slots \(3, 3, 72\) or split 32 .* bank \(2, 9, 64\)"),
        (torch.zeros(2, 2, L, 9), (L, 3, 63), 32, r"slots \(2, 3, 63\)"),
        (torch.zeros(2, 2, L, 9), (L, 3, 72), 0, "split 0"),
        (torch.zeros(2, 2, L, 9), (L, 3, 72), 64, "split 64"),
        (torch.zeros(2, 2, L, 9, dtype=torch.bool), (L, 3, 72), 32, "masks are torch.bool"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_shape(
    masks: Tensor, slots: tuple[int, ...], split: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        aggregate_adapters(torch.zeros(L, 9, 64), masks, torch.zeros(slots), torch.tensor([0, 1]), split=split)
