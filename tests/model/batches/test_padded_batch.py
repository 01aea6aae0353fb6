"""Padded sequences beside packed ones, in every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.backends import cuda

from xpeft_kernels import Norm, apply_adapters_even
from xpeft_server.model.batches import padded_batch
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.batches.padded_batch import PaddedBatch, PaddedSequences
from xpeft_server.model.loading.families import FAMILIES
from xpeft_server.model.plm import Plm
from xpeft_server.model.pooling import pool, pool_padded
from xpeft_server.model.slots import SlotAdapters, adapter_form

LENGTH = 20
LENGTHS = (20, 3, 1, 11, 7, 19)


class Even:
    def __init__(self, rows: Tensor, form: Any) -> None:
        self._rows = rows
        self._form = form

    def __call__(self, block: int, hidden: Tensor, residual: Tensor | None, norm: Norm | None) -> Tensor:
        return apply_adapters_even(hidden, self._rows[block], self._form, residual=residual, norm=norm)


def padded(plm: Plm, texts: list[Any], fill: int) -> PaddedBatch:
    """``fill`` stands in the padding."""
    ids, types = (np.full((len(texts), LENGTH), fill * on, np.int64) for on in (1, 0))
    for row, text in enumerate(texts):
        ids[row, : len(text)], types[row, : len(text)] = text.ids, text.type_ids
    positions = np.tile(np.arange(LENGTH) + plm.first_position, len(texts))
    live = torch.tensor([len(text) for text in texts])
    flat = (torch.from_numpy(each.reshape(1, -1)) for each in (ids, positions, types))
    return PaddedBatch(*flat, PaddedSequences(live, LENGTH))


def texts_of(lab: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    return [lab.text(rng, length) for length in LENGTHS]


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_are_those_of_packed_texts(lab: Any, family: str) -> None:
    plm = lab.plm(family, torch.float64)
    bank = lab.bank(plm)
    form = adapter_form(bank)
    texts = texts_of(lab)
    generator = torch.Generator().manual_seed(0)
    slots = 0.1 * torch.randn(bank.blocks, 3, form.slot_row, dtype=torch.float64, generator=generator)
    weight = torch.randn(len(texts), plm.facts.hidden, dtype=torch.float64, generator=generator)
    found = []
    for fill in (None, 0, 5):
        rows = slots.clone().requires_grad_()
        if fill is None:
            packed = pack(texts, [0, 0, 1, 1, 2, 2], first_position=plm.first_position)
            assert packed.tiles is not None
            hidden = plm.forward(packed, SlotAdapters(rows, packed.tiles, form))[: sum(LENGTHS)]
        else:
            batch = padded(plm, texts, fill)
            every = plm.forward(batch, Even(rows, form)).view(len(texts), LENGTH, -1)
            assert every.isfinite().all()
            hidden = torch.cat([each[:length] for each, length in zip(every, LENGTHS, strict=True)])
        owners = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(LENGTHS))
        (gradient,) = torch.autograd.grad((hidden * weight[owners]).sum(), rows)
        found.append((hidden.detach(), gradient))
    for hidden, gradient in found[1:]:
        torch.testing.assert_close(hidden, found[0][0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_is_not_pooled(lab: Any, pooling: Any) -> None:
    plm = lab.plm("bert")
    packed = pack(texts_of(lab), None)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(LENGTHS), LENGTH, plm.facts.hidden, generator=generator)
    rows = torch.cat([each[:length] for each, length in zip(hidden, LENGTHS, strict=True)])
    wanted = pool(torch.cat([rows, torch.zeros(len(packed.input_ids[0]) - len(rows), rows.shape[1])]), packed, pooling)
    torch.testing.assert_close(pool_padded(hidden, torch.tensor(LENGTHS), pooling), wanted)


def test_a_sequence_without_tokens_is_a_number_all_the_same(lab: Any) -> None:
    plm = lab.plm("mistral")
    batch = padded(plm, texts_of(lab), 0)
    empty = PaddedSequences(torch.zeros(len(LENGTHS), dtype=torch.int64), LENGTH)
    hidden = plm.forward(PaddedBatch(batch.input_ids, batch.position_ids, batch.token_type_ids, empty))
    assert hidden.isfinite().all()
    states = hidden.view(len(LENGTHS), LENGTH, -1)
    assert pool_padded(states, torch.zeros(len(LENGTHS), dtype=torch.int64), "mean").isfinite().all()


class OnGpu(Tensor):
    """Says so, at least."""

    device = torch.device("cuda")


@pytest.mark.parametrize(("device", "cudnn"), [("cuda", False), ("cpu", True)])
def test_attention_on_a_gpu_is_not_cudnns(monkeypatch: pytest.MonkeyPatch, device: str, cudnn: bool) -> None:
    found: list[dict[str, bool]] = []

    def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        allowed = {name: getattr(cuda, f"{name}_sdp_enabled")() for name in ("cudnn", "flash", "mem_efficient", "math")}
        found.append(allowed)
        return query

    monkeypatch.setattr(padded_batch, "scaled_dot_product_attention", attention)
    before = cuda.cudnn_sdp_enabled()
    states = torch.zeros(1, 4, 2 * LENGTH, 8)
    query = states.as_subclass(OnGpu) if device == "cuda" else states
    live = torch.ones(2, dtype=torch.int64)
    PaddedSequences(live, LENGTH).attend(query, states, states, scaling=None, window=None, causal=False)
    assert found == [{"cudnn": cudnn, "flash": True, "mem_efficient": True, "math": True}]
    assert cuda.cudnn_sdp_enabled() is before
