"""Tuning on a GPU, where every shape of step is a CUDA graph, against the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import Plm, load_plm
from xpeft_tuning.cohort import Cohort
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.graphed_step import GraphedStep
from xpeft_tuning.settings import TuningSettings
from xpeft_tuning.trainee import Trainee, enrol

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # What torch says once when it is asked to tell who waits for the device.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

QUICK: dict[str, Any] = {"epochs": 3, "batch_rows": 4, "head_penalty": 1.0, "held_out": 0.0}


def _rows(count: int, labels: tuple[str, ...], *, longest: int = 24) -> Dataset:
    rng = np.random.default_rng(count)
    lengths = rng.integers(1, longest + 1, count)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 100, length)) for length in lengths]
    return Dataset(tuple(Example(text, labels[row % len(labels)]) for row, text in enumerate(texts)), labels)


def _numbers(count: int) -> Dataset:
    rows = _rows(count, ("v",)).examples
    return Dataset(tuple(replace(row, label=number / count) for number, row in enumerate(rows)), ("v",))


def _answers(count: int) -> Dataset:
    rows = _rows(count, ("w1 w2", "w3", "w4 w5 w6")).examples
    return Dataset(rows, (), completions=True)


def _cohort(plm: Plm, bank: Bank, datasets: list[Dataset], **settings: Any) -> tuple[Cohort, list[Trainee]]:
    chosen = TuningSettings(**(QUICK | settings))
    trainees = [enrol(plm, str(n), each, each.labels, chosen) for n, each in enumerate(datasets)]
    classes = max(1, *(len(each.labels) for each in datasets))
    cohort = Cohort(plm, bank, chosen, places=len(datasets) + 1, classes=classes, completes=datasets[0].completions)
    cohort.admit(trainees)
    return cohort, trainees


def _first_step(cohort: Cohort, trainees: list[Trainee]) -> list[Tensor]:
    """Losses, and gradients, which Adam's first averages are a tenth of."""
    places = torch.tensor([each.place for each in trainees])
    cohort.step()
    gradients = [10 * each.cpu()[places] for each in cohort._state.optimizer._first_moments]
    return [torch.tensor([sum(map(float, each.losses)) for each in trainees]), *gradients]


@pytest.mark.parametrize("completes", [False, True], ids=["labels and numbers", "completions"])
@pytest.mark.parametrize("settings", [{}, {"kind": "soft"}, {"gumbel": 0.5, "k": 2}], ids=str)
def test_a_graph_has_the_losses_and_gradients_of_the_cpu(
    tiny_bert: Path, tiny_llama: Path, settings: dict[str, Any], completes: bool
) -> None:
    source = str(tiny_llama if completes else tiny_bert)
    labelled = [_rows(12, ("a", "b")), _numbers(14), _rows(9, ("a", "b", "c"))]
    data = [_answers(12), _answers(9)] if completes else labelled
    found = []
    for device in ("cpu", "cuda"):
        plm = load_plm(source, device=device)
        cohort, trainees = _cohort(plm, open_bank("random:N=8,R=8,seed=1,std=0.3", plm.facts), data, **settings)
        found.append(_first_step(cohort, trainees))
        if isinstance(cohort._step, GraphedStep):
            assert len(cohort._step._graphs) > 0
            assert not cohort._step._too_large
        assert isinstance(cohort._step, GraphedStep) is (device == "cuda")
    for wanted, given in zip(*found, strict=True):
        # cuBLAS and MKL add up in orders of their own: what is left is rounding of each tensor's largest numbers.
        largest = max(wanted.abs().max().item(), 1e-6)
        assert (wanted - given).abs().max().item() <= 1e-4 * largest


def test_steps_wait_for_nothing_but_where_an_epoch_is_looked_at(tiny_bert: Path) -> None:
    plm = load_plm(str(tiny_bert), device="cuda")
    bank = open_bank("random:N=8,R=8,seed=1,std=0.3", plm.facts)
    cohort, trainees = _cohort(plm, bank, [_rows(40, labels, longest=12) for labels in (("a", "b"), ("x", "y"))])
    while trainees[0].epochs_done < 1:
        cohort.step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        while trainees[0].epochs_done < 2:
            cohort.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(cohort._step, GraphedStep)
    assert len(cohort._step._graphs) == 1


def test_a_whole_tuning_learns_and_places_are_used_again(tiny_bert: Path) -> None:
    plm = load_plm(str(tiny_bert), device="cuda")
    bank = open_bank("random:N=8,R=8,seed=1,std=0.3", plm.facts)
    cohort, trainees = _cohort(plm, bank, [_rows(12, ("a", "b")), _rows(30, ("a", "b"))], epochs=8)
    later = enrol(plm, "later", _rows(16, ("x", "y")), ("x", "y"), trainees[0].settings)
    first: dict[str, float] = {}
    cohort.admit([later])
    while cohort.trainees:
        running = list(cohort.trainees)
        cohort.step()
        for each in running:
            if each.epochs_done == 1 and each.ends_epoch:
                first[each.name] = sum(map(float, each.losses))
    for each in (*trainees, later):
        assert each.best.profile is not None
        assert sum(map(float, each.losses)) < first[each.name]


@pytest.mark.parametrize("own", [False, True])
def test_a_head_that_the_bank_has_on_the_cpu_is_learned_with(tiny_bert: Path, own: bool) -> None:
    plm = load_plm(str(tiny_bert), device="cuda")
    bank = open_bank("random:N=8,R=8,seed=1,std=0.3", plm.facts)
    shared = SharedHead(torch.ones(2, bank.hidden), torch.zeros(2), ("a", "b"))
    bank = replace(bank, heads={"both": shared})
    cohort, (trainee,) = _cohort(plm, bank, [_rows(12, ("a", "b"))], shared_head="both", own_head=own)
    while cohort.trainees:
        cohort.step()
    assert trainee.failure is None
    assert trainee.best.profile is not None
