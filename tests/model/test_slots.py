from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import Norm, Tiles, apply_adapters
from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.errors import BankInvalid
from xpeft_server.model.errors import ModelUnusable
from xpeft_server.model.slots import SlotAdapters, SlotBuffers, SlotFill, adapter_form, bank_rows, check_width

CPU = torch.device("cpu")
NO_ROWS = np.empty(0, np.int64)


@pytest.fixture
def bank(lab: Any) -> Bank:
    made: Bank = lab.bank(lab.plm("bert"), biases=True)
    return made


def buffers_of(bank: Bank, slots: int = 40, dtype: torch.dtype = torch.float32) -> SlotBuffers:
    """Slots and label rows that nothing was written to hold NaN."""
    buffers = SlotBuffers(bank, slots=slots, head_rows=90, device=CPU, dtype=dtype)
    buffers.adapters.fill_(torch.nan)
    buffers.head_weight[:90] = torch.nan
    buffers.head_bias[:90] = torch.nan
    return buffers


def fill_of(profile: Profile, slot: int, first_row: int = 0) -> SlotFill:
    own = () if profile.head_weight is None else range(first_row, first_row + len(profile.head_weight))
    return SlotFill(slot, profile, np.array(own, np.int64))


def test_the_form_is_the_banks(bank: Bank) -> None:
    form = adapter_form(bank)
    assert (form.hidden, form.width, form.activation, form.layer_norm) == (64, 8, "relu", True)
    assert (form.down_bias, form.up_bias) == (True, True)
    plain = adapter_form(replace(bank, down_bias=None, up_bias=None, activation="gelu", layer_norm=False))
    assert (plain.activation, plain.layer_norm, plain.down_bias, plain.up_bias) == ("gelu", False, False, False)


@pytest.mark.parametrize(("down_bias", "up_bias"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_row_of_the_bank_is_down_and_up_each_with_its_bias(bank: Bank, down_bias: bool, up_bias: bool) -> None:
    bank = replace(bank, down_bias=bank.down_bias if down_bias else None, up_bias=bank.up_bias if up_bias else None)
    rows = bank_rows(bank, device=CPU, dtype=torch.float32)
    for block in range(bank.blocks):
        for n in range(bank.adapters):
            parts: list[Tensor | None] = [
                each if each is None else each[block, n] for each in (bank.down, bank.down_bias, bank.up, bank.up_bias)
            ]
            assert torch.equal(rows[block, n], torch.cat([part.flatten() for part in parts if part is not None]))


@pytest.mark.parametrize("number", [4, 5], ids=["hard", "soft"])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 33])
def test_a_slots_bits_depend_neither_on_its_place_nor_on_who_is_filled_with_it(
    lab: Any, bank: Bank, number: int, count: int
) -> None:
    profile = lab.profile(bank, number)
    alone = buffers_of(bank, slots=1)
    alone.fill([fill_of(profile, 0)])
    company = [fill_of(lab.profile(bank, 50 + i), i) for i in range(count)]
    beside = buffers_of(bank)
    beside.fill([*company[: count // 2], fill_of(profile, 37), *company[count // 2 :]])
    assert alone.adapters[:, :1].isfinite().all()
    assert torch.equal(beside.adapters[:, 37], alone.adapters[:, 0])


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 512), (torch.bfloat16, 1024)], ids=str)
def test_adapters_wider_than_a_gpus_kernel_takes_are_refused_there_alone(
    lab: Any, dtype: torch.dtype, most: int
) -> None:
    plm = lab.plm("distilbert")
    fits, wide = (lab.bank(plm, adapters=2, width=width) for width in (most, most + 1))
    check_width(fits, device=torch.device("cuda"), dtype=dtype)
    check_width(wide, device=torch.device("cpu"), dtype=dtype)
    with pytest.raises(BankInvalid, match=rf"R={most + 1}: .* takes up to {most} \(--device cpu takes any\)"):
        check_width(wide, device=torch.device("cuda"), dtype=dtype)


def test_slots_that_the_device_has_no_memory_for_are_refused_with_their_size(bank: Bank) -> None:
    row = bank.blocks * adapter_form(bank).slot_row * 4
    with pytest.raises(ModelUnusable, match=rf"^slots: {1 << 45} of {row} bytes, which cpu has no memory for$"):
        SlotBuffers(bank, slots=1 << 45, head_rows=90, device=CPU, dtype=torch.float32)


def test_so_is_a_bank(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_left(bank: Bank, **kind: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("xpeft_server.model.slots.bank_rows", nothing_left)
    size = bank.blocks * bank.adapters * adapter_form(bank).bank_row * 4
    with pytest.raises(ModelUnusable, match=f"^bank: {bank.adapters} adapters for each block take {size} bytes, which"):
        buffers_of(bank)


def test_slots_that_are_not_filled_stay_as_they_were(lab: Any, bank: Bank) -> None:
    buffers = buffers_of(bank)
    buffers.fill([fill_of(lab.profile(bank, i), slot, 10 * i) for i, slot in enumerate((3, 30, 8))])
    others = [slot for slot in range(40) if slot not in (3, 30, 8)]
    assert buffers.adapters[:, others].isnan().all()
    assert buffers.adapters[:, [3, 30, 8]].isfinite().all()


def test_filling_nothing_changes_nothing(bank: Bank) -> None:
    buffers = buffers_of(bank)
    buffers.fill([])
    assert buffers.adapters.isnan().all()


def test_a_slot_that_is_filled_again_forgets_who_was_there(lab: Any, bank: Bank) -> None:
    first, second = lab.profile(bank, 1, affine=True), lab.profile(bank, 2, affine=False)
    used, fresh = buffers_of(bank), buffers_of(bank)
    used.fill([fill_of(first, 5)])
    for buffers in (used, fresh):
        buffers.fill([fill_of(second, 5)])
    assert torch.equal(used.adapters[:, 5], fresh.adapters[:, 5])


def test_the_affine_is_the_profiles_and_the_identity_where_it_brings_none(lab: Any, bank: Bank) -> None:
    own, none = lab.profile(bank, 1, affine=True), lab.profile(bank, 2, affine=False)
    buffers = buffers_of(bank)
    buffers.fill([fill_of(own, 1), fill_of(none, 2, 20)])
    width, start = bank.width, buffers.form.bank_row
    assert own.ln_weight is not None
    assert own.ln_bias is not None
    assert torch.equal(buffers.adapters[:, 1, start : start + width], torch.tensor(own.ln_weight).float())
    assert torch.equal(buffers.adapters[:, 1, start + width :], torch.tensor(own.ln_bias).float())
    assert (buffers.adapters[:, 2, start : start + width] == 1).all()
    assert (buffers.adapters[:, 2, start + width :] == 0).all()


def test_a_bank_without_a_layer_norm_has_no_room_for_an_affine(lab: Any, bank: Bank) -> None:
    plain = replace(bank, layer_norm=False)
    buffers = buffers_of(plain)
    buffers.fill([fill_of(lab.profile(plain, 2), 0)])
    assert buffers.adapters.shape[2] == buffers.form.bank_row
    assert buffers.adapters[:, 0].isfinite().all()


def test_own_heads_go_to_their_rows_and_no_other(lab: Any, bank: Bank) -> None:
    profile = lab.profile(bank, 2)
    buffers = buffers_of(bank)
    rows = np.array([70, 4, 33])
    buffers.fill([SlotFill(0, profile, rows)])
    assert torch.equal(buffers.head_weight[rows], torch.tensor(profile.head_weight).float())
    assert torch.equal(buffers.head_bias[rows], torch.tensor(profile.head_bias).float())
    others = [row for row in range(90) if row not in rows]
    assert buffers.head_weight[others].isnan().all()
    assert buffers.head_bias[others].isnan().all()


def test_shared_heads_lie_behind_the_own_ones_from_the_start(bank: Bank) -> None:
    buffers = buffers_of(bank)
    assert {name: rows.tolist() for name, rows in buffers.shared_head_rows.items()} == {
        "mood": [90, 91, 92],
        "stars": [93],
    }
    for name, rows in buffers.shared_head_rows.items():
        assert torch.equal(buffers.head_weight[rows], bank.heads[name].weight)
        assert torch.equal(buffers.head_bias[rows], bank.heads[name].bias)
    assert buffers.own_head_rows == 90
    assert buffers.slots == 40


def test_a_profile_with_a_shared_head_writes_no_head(lab: Any, bank: Bank) -> None:
    profile = lab.profile(bank, 3)
    assert profile.shared_head is not None
    buffers = buffers_of(bank)
    buffers.fill([SlotFill(0, profile, NO_ROWS)])
    assert buffers.head_weight[:90].isnan().all()


def test_slots_have_the_models_dtype_and_heads_stay_in_float32(lab: Any, bank: Bank) -> None:
    buffers = buffers_of(bank, dtype=torch.bfloat16)
    exact = buffers_of(bank)
    for each in (buffers, exact):
        each.fill([fill_of(lab.profile(bank, 5), 2)])
    assert buffers.adapters.dtype == torch.bfloat16
    assert buffers.head_weight.dtype == buffers.head_bias.dtype == torch.float32
    scale = exact.adapters[:, 2].abs().max()
    assert (buffers.adapters[:, 2].float() - exact.adapters[:, 2]).abs().max() < 2**-7 * scale


def test_a_banks_dtype_does_not_matter_to_who_reads_it(bank: Bank) -> None:
    half = {name: tensor.half() for name, tensor in bank.adapter_tensors().items()}
    rows = bank_rows(replace(bank, **half), device=CPU, dtype=torch.float32)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, bank_rows(bank, device=CPU, dtype=torch.float32).half().float())


def test_the_adapters_of_a_batch_are_the_blocks_own_slots(lab: Any, bank: Bank) -> None:
    buffers = buffers_of(bank)
    buffers.fill([fill_of(lab.profile(bank, i), i, 10 * i) for i in range(3)])
    tiles = Tiles.of([2, 0], [20, 3])
    hidden, residual = torch.randn(2, 23, 64)
    norm = Norm(torch.ones(64), torch.zeros(64), 1e-5)
    adapters = SlotAdapters(buffers.adapters, tiles, buffers.form)
    for block in range(bank.blocks):
        wanted = apply_adapters(hidden, buffers.adapters[block], tiles, buffers.form, residual=residual, norm=norm)
        assert torch.equal(adapters(block, hidden, residual, norm), wanted)
    assert not torch.equal(adapters(0, hidden, None, None), adapters(1, hidden, None, None))


def test_rows_in_the_bare_slot_come_out_with_the_bits_that_went_in(lab: Any) -> None:
    plm = lab.plm("bert")
    for kind in ({}, {"activation": "gelu", "biases": True}, {"layer_norm": False}):
        buffers = SlotBuffers(lab.bank(plm, **kind), slots=4, head_rows=9, device=CPU, dtype=torch.float32)
        buffers.adapters[:, : buffers.slots] = torch.nan
        tiles = Tiles.of([buffers.bare_slot], [20])
        hidden = torch.randn(20, buffers.form.hidden, generator=torch.Generator().manual_seed(0))
        assert torch.equal(SlotAdapters(buffers.adapters, tiles, buffers.form)(0, hidden, None, None), hidden)
