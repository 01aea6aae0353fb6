from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xpeft_kernels import AdapterForm
from xpeft_server.model.plm import Plm
from xpeft_server.model.slots import SlotAdapters
from xpeft_tuning.dataset import Example
from xpeft_tuning.forward import hidden_states, seeded
from xpeft_tuning.labelled_texts import LabelledTexts
from xpeft_tuning.row_batch import Pick, RowBatch, pack_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch(plm: Plm) -> RowBatch:
    """62 tokens of one slot."""
    texts = LabelledTexts(plm, [Example(" ".join(["w1"] * 60), "a")], ("a", "b"), completions=False)
    return pack_rows(plm, [Pick(0, texts, np.array([0]))])


@pytest.fixture(scope="module")
def form(plm: Plm) -> AdapterForm:
    return AdapterForm(hidden=plm.facts.hidden, width=4, activation="relu", layer_norm=False)


@pytest.fixture(scope="module")
def slots(plm: Plm, form: AdapterForm) -> Tensor:
    return 0.3 * torch.randn(plm.facts.blocks, 1, form.bank_row, generator=torch.Generator().manual_seed(1))


def _dropped(plm: Plm, batch: RowBatch, slots: Tensor, form: AdapterForm, seed: int, dropout: float = 0.25) -> Tensor:
    with seeded(CPU, seed):
        return hidden_states(plm, batch, slots, form, dropout=dropout)


def test_the_same_seed_drops_the_same_numbers(plm: Plm, batch: RowBatch, slots: Tensor, form: AdapterForm) -> None:
    first, again, other = (_dropped(plm, batch, slots, form, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_model_is_afterwards_as_before(plm: Plm, batch: RowBatch, slots: Tensor, form: AdapterForm) -> None:
    before = hidden_states(plm, batch, slots, form)
    state = torch.get_rng_state()
    assert not torch.equal(_dropped(plm, batch, slots, form, 1), before)
    assert torch.equal(hidden_states(plm, batch, slots, form), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_blocks_adapters_get_what_is_left_scaled_up(
    plm: Plm, batch: RowBatch, slots: Tensor, form: AdapterForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []
    apply = SlotAdapters.__call__

    def recorded(adapters: SlotAdapters, block: int, hidden: Tensor, *rest: Tensor) -> Tensor:
        given.append(hidden)
        return apply(adapters, block, hidden, *rest)

    monkeypatch.setattr(SlotAdapters, "__call__", recorded)
    hidden_states(plm, batch, slots, form)
    whole = given[0]
    _dropped(plm, batch, slots, form, 1)
    assert len(given) == 2 * plm.facts.blocks
    for hidden in given[plm.facts.blocks :]:
        assert (hidden == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)  # of 1,984 numbers: 5 sd
    assert whole.count_nonzero() == whole.numel()


def test_and_so_does_the_models_own_dropout(
    plm: Plm, batch: RowBatch, slots: Tensor, form: AdapterForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, bool]] = []
    monkeypatch.setattr(nn.Dropout, "forward", lambda module, x: asked.append((module.p, module.training)) or x)
    _dropped(plm, batch, slots, form, 1)
    assert len(asked) == 1 + plm.facts.blocks  # embeddings, and each block's attention
    assert set(asked) == {(0.25, True)}
    asked.clear()
    hidden_states(plm, batch, slots, form)
    assert {training for _, training in asked} == {False}
