"""Heads that are solved before the first step: where they start, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.plm import Plm, load_plm
from xpeft_tuning.cohort import Cohort
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.row_adam import RowAdam
from xpeft_tuning.settings import TuningSettings
from xpeft_tuning.trainee import Trainee, enrol

MakeDataset = Callable[..., Dataset]
STILL: dict[str, Any] = {"lr_masks": 0.0, "lr_norm": 0.0, "held_out": 0.0, "head_penalty": 1.0}


@pytest.mark.parametrize("kind", ["labels", "numbers", "beside a shared head"])
def test_a_head_starts_where_what_is_tuned_is_the_least(
    plm: Plm, bank: Bank, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Loss and penalty of all rows: of the head nothing is left to learn before masks and affine have moved."""
    dataset = make_dataset(24)
    if kind == "numbers":
        rows = tuple(Example(row.text, float(place % 7)) for place, row in enumerate(dataset.examples))
        dataset = Dataset(rows, ("value",))
    shared: dict[str, Any] = {"shared_head": "x", "own_head": True} if kind == "beside a shared head" else {}
    weight = torch.randn(3, bank.hidden, generator=torch.Generator().manual_seed(3))
    bank = replace(bank, heads={"x": SharedHead(weight, torch.zeros(3), dataset.labels)}) if shared else bank
    chosen = TuningSettings(held_out=0.0, batch_rows=24, head_penalty=10.0, epochs=1, kind="soft", **shared)
    trainee = enrol(plm, "ann", dataset, dataset.labels, chosen)
    cohort = Cohort(plm, bank, chosen, places=1, classes=3)
    cohort.admit([trainee])
    size = cohort._stack.learned.head_weight.norm().item()
    gradients: list[Tensor] = []
    monkeypatch.setattr(RowAdam, "step", lambda _, rows, found, share: gradients.extend(found))
    cohort.step()
    assert trainee.penalty.weight == pytest.approx(10 / 24)
    assert trainee.penalty.weight * size > 0.01
    assert (trainee.penalty.bias > 0) is (kind == "beside a shared head")
    logits, _, _, head_weight, head_bias = gradients
    assert logits.abs().max() > 1e-4
    assert head_weight.abs().max() < 2e-6
    assert head_bias.abs().max() < 2e-6


def test_few_rows_keep_a_head_near_a_shared_one_and_not_near_nothing(
    plm: Plm, bank: Bank, make_dataset: MakeDataset
) -> None:
    """The likely shift of `choose_penalties` is of users of one head; of a head alone nothing is known."""
    dataset = make_dataset(6)
    bank = replace(bank, heads={"x": SharedHead(torch.zeros(3, bank.hidden), torch.zeros(3), dataset.labels)})
    penalties = []
    for shared in ({}, {"shared_head": "x", "own_head": True}):
        settings: dict[str, Any] = {**STILL, "head_penalty": None, **shared}
        chosen = TuningSettings(**settings)
        trainee = enrol(plm, "ann", dataset, dataset.labels, chosen)
        Cohort(plm, bank, chosen, places=1, classes=3).admit([trainee])
        penalties.append(trainee.penalty.weight * len(trainee.train))
    assert penalties[0] == pytest.approx(1)
    assert penalties[1] >= 10


def _heads(cohort: Cohort, trainee: Trainee, steps: int) -> list[Tensor]:
    """Weight and bias as one, before the first step and after each."""
    here = torch.tensor([trainee.place])
    heads = []
    for step in range(steps + 1):
        if step:
            cohort.step()
        head = cohort._stack.head(here, cohort._stack.leaves(here))
        heads.append(torch.cat([each.detach().flatten() for each in head]))
    return heads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"kind": "soft"}, {"class_weights": "balanced"}, {"batch_tokens": 30}, {"shared_head": "x", "own_head": True}],
    ids=["hard", "soft", "balanced", "in parts", "beside a shared head"],
)
def test_a_head_that_is_solved_for_all_rows_stays_at_its_optimum(
    tiny_bert: Path, bank: Bank, make_dataset: MakeDataset, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    """While nothing else moves; of fewer rows every gradient is real, and Adam's first step the whole rate."""
    plm = load_plm(str(tiny_bert), dtype=dtype)
    head = torch.randn(3, bank.hidden, generator=torch.Generator().manual_seed(3))
    bank = replace(bank, heads={"x": SharedHead(head, torch.zeros(3), ("red", "green", "blue"))})
    dataset = make_dataset(24)
    dataset = replace(dataset, examples=dataset.examples[:10] + dataset.examples[10::3])
    for rows, moves in ((15, False), (14, True)):
        chosen = TuningSettings(**(STILL | settings), lr_head=0.1, epochs=10, batch_rows=rows)
        trainee = enrol(plm, "ann", dataset, dataset.labels, chosen)
        cohort = Cohort(plm, bank, chosen, places=1, classes=3)
        cohort.admit([trainee])
        assert trainee.steps == (2 if moves else 1)
        before, after, *_, last = _heads(cohort, trainee, steps=8)
        if moves:
            moved = (after - before).abs()
            assert moved.max() <= 0.1 + 1e-6
            assert moved.median() > 0.0999
        else:
            assert torch.equal(after, before)
            assert torch.equal(last, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_solved_for_all_rows_moves_when_the_masks_have_moved(
    tiny_bert: Path, bank: Bank, make_dataset: MakeDataset, dtype: torch.dtype
) -> None:
    plm = load_plm(str(tiny_bert), dtype=dtype)
    dataset = make_dataset(15)
    chosen = TuningSettings(held_out=0.0, head_penalty=1.0, lr_head=0.1, epochs=10)
    trainee = enrol(plm, "ann", dataset, dataset.labels, chosen)
    cohort = Cohort(plm, bank, chosen, places=1, classes=3)
    cohort.admit([trainee])
    before, first, second = _heads(cohort, trainee, steps=2)
    assert torch.equal(first, before)
    # At nine tenths of the rate, Adam's second step where the first gradient was zero.
    whole = 0.9 * 0.1 * (0.1 / (1 - 0.9**2)) / (0.001 / (1 - 0.999**2)) ** 0.5
    torch.testing.assert_close((second - first).abs().median(), torch.tensor(whole), rtol=1e-3, atol=0)


def test_noise_on_the_logits_leaves_nothing_solved(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(15)
    chosen = TuningSettings(**STILL, gumbel=1.0, lr_head=0.1, epochs=2)
    trainee = enrol(plm, "ann", dataset, dataset.labels, chosen)
    cohort = Cohort(plm, bank, chosen, places=1, classes=3)
    cohort.admit([trainee])
    before, after = _heads(cohort, trainee, steps=1)
    assert (after - before).abs().median() > 0.0999
