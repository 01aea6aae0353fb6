from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_server.model.bank import Bank
from xpeft_server.model.packing import pack
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.model.slots import SlotAdapters, SlotBuffers, SlotFill, adapter_form, bank_rows
from xpeft_tuning.draft import ProfileDraft
from xpeft_tuning.linear_head import LinearHead
from xpeft_tuning.settings import Kind, TuningSettings

CPU = torch.device("cpu")


def _draft(bank: Bank, **settings: object) -> ProfileDraft:
    head = LinearHead(torch.randn(2, bank.hidden, generator=torch.Generator().manual_seed(1)), torch.zeros(2))
    chosen = TuningSettings(**settings)  # type: ignore[arg-type]
    draft = ProfileDraft(bank, adapter_form(bank), chosen, labels=("a", "b"), head=head, device=CPU)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (draft.logits, draft.ln_weight, draft.ln_bias):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return draft


def _with_biases(bank: Bank) -> Bank:
    generator = torch.Generator().manual_seed(3)
    down = torch.randn(bank.blocks, bank.adapters, bank.width, generator=generator)
    up = torch.randn(bank.blocks, bank.adapters, bank.hidden, generator=generator)
    return replace(bank, down_bias=down, up_bias=up)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("change", [lambda bank: bank, _with_biases, lambda bank: replace(bank, layer_norm=False)])
def test_what_is_tuned_is_what_is_served_up_to_float16(bank: Bank, change: Callable[[Bank], Bank], kind: Kind) -> None:
    bank = change(bank)
    draft = _draft(bank, kind=kind)
    buffers = SlotBuffers(bank, slots=1, head_rows=2, device=CPU, dtype=torch.float32)
    buffers.fill([SlotFill(0, draft.profile(), np.arange(2))])
    rows = draft.slot_rows(bank_rows(bank, device=CPU, dtype=torch.float32))
    torch.testing.assert_close(rows, buffers.adapters, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(draft.head_weight, buffers.head_weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("parameter", ["logits", "ln_weight", "ln_bias"])
def test_the_gradient_through_the_whole_model_is_that_of_finite_differences(
    tiny_bert: Path, bank: Bank, parameter: str
) -> None:
    plm = load_plm(str(tiny_bert), dtype=torch.float64)
    draft = _draft(bank, kind="soft").double()
    weights = bank_rows(bank, device=CPU, dtype=torch.float64)
    batch = pack(plm.tokenizer.encode([("w1 w2 w3", None), ("w4 w5 w6 w7 w8 w9 w10 w11 w12 w13", None)]), [0, 0])
    assert batch.tiles is not None
    tiles, form = batch.tiles, adapter_form(bank)
    direction = torch.randn(batch.input_ids.shape[1], bank.hidden, generator=torch.Generator().manual_seed(4)).double()

    def loss() -> Tensor:
        return (plm.forward(batch, SlotAdapters(draft.slot_rows(weights), tiles, form)) * direction).sum()

    torch.autograd.backward(loss())
    values = draft.get_parameter(parameter)
    assert values.grad is not None
    flat = values.data.view(-1)
    for place in range(0, flat.numel(), 3):
        before, change = flat[place].item(), 1e-5
        with torch.no_grad():
            flat[place] = before + change
            above = loss().item()
            flat[place] = before - change
            below = loss().item()
            flat[place] = before
        assert values.grad.view(-1)[place].item() == pytest.approx((above - below) / (2 * change), rel=1e-4, abs=1e-6)


def test_the_frozen_parts_get_no_gradient(plm: Plm, bank: Bank) -> None:
    draft = _draft(bank)
    rows = bank_rows(bank, device=CPU, dtype=torch.float32)
    batch = pack(plm.tokenizer.encode([("w1 w2 w3", None)]), [0])
    assert batch.tiles is not None
    hidden = plm.forward(batch, SlotAdapters(draft.slot_rows(rows), batch.tiles, adapter_form(bank)))
    torch.autograd.backward(draft.head(hidden).sum())
    assert all(parameter.grad is None for parameter in plm.model.parameters())
    assert rows.grad is None
    assert all(parameter.grad is not None for parameter in draft.parameters())


def test_a_hard_profile_selects_k_in_every_row(bank: Bank) -> None:
    profile = _draft(bank, k=3).profile()
    assert (profile.hard, profile.k) == (True, 3)
    assert not _draft(bank, kind="soft").profile().hard
