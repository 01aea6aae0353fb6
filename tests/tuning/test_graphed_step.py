"""The step of few shapes, which a GPU's graphs repeat, beside the packed one; here it runs operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.batches.padded_batch import PaddedSequences
from xpeft_server.model.graphs.graph_set import GraphSet
from xpeft_server.model.plm import Plm
from xpeft_tuning import padded_pass
from xpeft_tuning.cohort import Cohort
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.packed_step import PackedStep
from xpeft_tuning.settings import TuningSettings
from xpeft_tuning.static_inputs import StaticInputs
from xpeft_tuning.trainee import Trainee, enrol

QUICK: dict[str, Any] = {"epochs": 3, "batch_rows": 4, "head_penalty": 1.0, "held_out": 0.0}
ROUNDING = 64 * torch.finfo(torch.float32).eps
"""Of a gradient, as a part of the largest of its tensor: sums of hundreds to thousands of products, in two orders.

Not of the same trainee's: where its rows cancel, the rounding of what cancelled is left.
"""

Data = Callable[[], list[Dataset]]


def _texts(count: int, rng: np.random.Generator, longest: int) -> list[str]:
    lengths = rng.integers(1, longest + 1, count)
    return [" ".join(f"w{word}" for word in rng.integers(0, 100, each)) for each in lengths]


def _labelled(rows: int, labels: tuple[str, ...], *, longest: int = 12) -> Dataset:
    texts = _texts(rows, np.random.default_rng(rows), longest)
    return Dataset(tuple(Example(each, labels[row % len(labels)]) for row, each in enumerate(texts)), labels)


def _numbers(rows: int) -> Dataset:
    rng = np.random.default_rng(rows)
    values = rng.normal(size=rows).tolist()
    return Dataset(
        tuple(Example(text, value) for text, value in zip(_texts(rows, rng, 20), values, strict=True)), ("v",)
    )


def _answers(rows: int) -> Dataset:
    rng = np.random.default_rng(rows)
    pairs = zip(_texts(rows, rng, 12), _texts(rows, rng, 5), strict=True)
    return Dataset(tuple(Example(text, answer) for text, answer in pairs), (), completions=True)


def _mixed() -> list[Dataset]:
    uneven = _labelled(19, ("x", "y", "z"), longest=30)
    rare = replace(uneven, examples=uneven.examples[:7] + uneven.examples[9::3])
    return [_labelled(12, ("a", "b")), rare, _numbers(14), _labelled(9, ("a", "b", "c"), longest=3)]


CASES: list[Any] = [
    pytest.param({}, id="hard"),
    pytest.param({"kind": "soft", "temperature": 2.0, "last_temperature": 0.5}, id="soft, cooling"),
    pytest.param({"gumbel": 0.7, "k": 2}, id="noise"),
    pytest.param({"class_weights": "balanced", "head_penalty": 30.0}, id="weights and penalty"),
    pytest.param({"batch_tokens": 128}, id="in many parts"),
    pytest.param({"batch_rows": 64}, id="a head that is solved"),
]


def _cohort(plm: Plm, bank: Bank, datasets: list[Dataset], placed: bool, **settings: Any) -> Cohort:
    """As many places as trainees and two more; all have entered."""
    chosen = TuningSettings(**(QUICK | settings))
    shared = None if chosen.shared_head is None else bank.heads[chosen.shared_head].labels
    trainees = [enrol(plm, str(n), each, shared or each.labels, chosen) for n, each in enumerate(datasets)]
    cohort = Cohort(
        plm,
        bank,
        chosen,
        places=len(datasets) + 2,
        classes=max(1, *(len(each.labels) for each in trainees)),
        completes=datasets[0].completions,
        placed=placed,
    )
    cohort.admit(trainees)
    return cohort


def _gradients(cohort: Cohort, trainees: list[Trainee]) -> list[Tensor]:
    """Of the first step, which Adam's first averages are a tenth of."""
    places = [each.place for each in trainees]
    return [10 * each[places] for each in cohort._state.optimizer._first_moments]


def _difference(plm: Plm, bank: Bank, data: Data, **settings: Any) -> float:
    """Of the first step's losses and gradients, as a part of each gradient's largest, whichever differs most."""
    found = []
    for placed in (False, True):
        cohort = _cohort(plm, bank, data(), placed, **settings)
        trainees = list(cohort.trainees)
        cohort.step()
        losses = torch.tensor([sum(map(float, each.losses)) for each in trainees])
        found.append([losses, *_gradients(cohort, trainees)])
    pairs = [(wanted, given, wanted.abs().max()) for wanted, given in zip(*found, strict=True)]
    return max(((a - b).abs().max() / largest if largest else b.abs().max()).item() for a, b, largest in pairs)


@pytest.mark.parametrize("settings", CASES)
def test_a_placed_step_has_the_losses_and_gradients_of_a_packed_one(
    plm: Plm, bank: Bank, settings: dict[str, Any]
) -> None:
    assert _difference(plm, bank, _mixed, **settings) < ROUNDING


@pytest.mark.parametrize("changed", [{"pooling": "cls"}, {"pooling": "last"}, {"activation": "gelu"}, {"biases": 1}])
def test_it_does_so_over_every_bank(plm: Plm, bank: Bank, changed: dict[str, Any]) -> None:
    if "biases" in changed:
        noise = torch.Generator().manual_seed(3)
        changed = {"down_bias": torch.randn(bank.down.shape[:2] + bank.down.shape[3:], generator=noise),
                   "up_bias": torch.randn(bank.up.shape[:2] + bank.up.shape[3:], generator=noise),
                   "layer_norm": False}  # fmt: skip
    assert _difference(plm, replace(bank, **changed), _mixed) < ROUNDING


def test_it_does_so_under_a_shared_head(plm: Plm, bank: Bank) -> None:
    weight = torch.randn(2, bank.hidden, generator=torch.Generator().manual_seed(0))
    there = replace(bank, heads={"fixed": SharedHead(weight, torch.zeros(2), ("a", "b"))})
    for own in (False, True):
        assert _difference(plm, there, lambda: _mixed()[:1], shared_head="fixed", own_head=own) < ROUNDING


def test_it_does_so_where_padding_stands_in_a_text(plm: Plm, bank: Bank) -> None:
    """As RoBERTa counts positions: token 7, which is "w3" here, has one of its own."""
    counted = replace(plm, first_position=8)
    assert any("w3" in row.text.split() for each in _mixed() for row in each.examples)
    assert _difference(counted, bank, _mixed) < ROUNDING


@pytest.mark.parametrize("settings", [{}, {"kind": "soft", "gumbel": 0.5}, {"batch_tokens": 128}], ids=str)
def test_it_does_so_for_completions(decoder: Plm, settings: dict[str, Any]) -> None:
    bank = open_bank("random:N=8,R=8,seed=1,std=0.3", decoder.facts)
    assert _difference(decoder, bank, lambda: [_answers(9), _answers(14)], **settings) < ROUNDING


@pytest.mark.parametrize("broken", ["padding is seen", "padding is pooled", "rows weigh the same"])
def test_the_comparison_finds_what_is_wrong(plm: Plm, bank: Bank, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    if broken == "padding is seen":
        full = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        monkeypatch.setattr(PaddedSequences, "_seen", lambda *_: full)
    elif broken == "padding is pooled":
        monkeypatch.setattr(padded_pass, "pool_padded", lambda hidden, *_: hidden.float().mean(dim=1))
    else:
        write = StaticInputs._write

        def alike(self: StaticInputs, to: Any, slot: int, batch: Any) -> None:
            write(self, to, slot, batch)
            to["weight"][:] = to["mean"]

        monkeypatch.setattr(StaticInputs, "_write", alike)
    assert _difference(plm, bank, _mixed, class_weights="balanced") > 100 * ROUNDING


@pytest.mark.parametrize("settings", [{}, {"kind": "soft"}, {"gumbel": 0.5}, {"stop_on": "loss"}], ids=str)
def test_a_whole_tuning_ends_where_a_packed_one_does(plm: Plm, bank: Bank, settings: dict[str, Any]) -> None:
    """Adam turns the sign of a gradient that is nothing but rounding into a whole step: most numbers agree, all nearly
    do, and what is served is the same."""
    found = []
    for placed in (False, True):
        cohort = _cohort(plm, bank, _mixed(), placed, **settings)
        trainees = list(cohort.trainees)
        while cohort.trainees:
            cohort.step()
        found.append((cohort, trainees))
    (packed, theirs), (placed_one, ours) = found
    for one, other in zip(theirs, ours, strict=True):
        assert other.best.epoch == one.best.epoch
        assert sum(map(float, other.losses)) == pytest.approx(sum(map(float, one.losses)), rel=1e-3)
        a, b = (packed._stack.learned.logits[one.place], placed_one._stack.learned.logits[other.place])
        moved = one.settings.lr_masks
        assert ((a - b).abs() > 1e-3 * moved).float().mean() < 0.01
        assert one.best.profile is not None
        assert other.best.profile is not None
        if one.settings.kind == "hard":
            assert np.array_equal(other.best.profile.mask_a, one.best.profile.mask_a)
            assert np.array_equal(other.best.profile.mask_b, one.best.profile.mask_b)
        assert other.best.profile.labels == one.best.profile.labels


def _state(cohort: Cohort, place: int) -> list[Tensor]:
    adam = cohort._state.optimizer
    every = [*cohort._stack.learned, *adam._first_moments, *adam._second_moments, *adam._noise, adam._steps]
    return [each[place].clone() for each in every]


def test_places_of_others_stay_as_they_are_to_the_bit(plm: Plm, bank: Bank) -> None:
    cohort = _cohort(plm, bank, _mixed(), placed=True)
    first, *rest = cohort.trainees
    idle = cohort._free[0]
    for each in cohort._state.optimizer._first_moments:
        each[idle] = 0.5
    kept = {place: _state(cohort, place) for place in (first.place, idle)}
    moved = {each.place: _state(cohort, each.place) for each in rest}
    cohort.trainees = rest
    cohort.step()
    for place, before in kept.items():
        assert all(torch.equal(old, new) for old, new in zip(before, _state(cohort, place), strict=True))
    for place, before in moved.items():
        assert not any(torch.equal(old, new) for old, new in zip(before[:1], _state(cohort, place)[:1], strict=True))


def test_the_place_that_nobody_has_learns_nothing(plm: Plm, bank: Bank) -> None:
    cohort = _cohort(plm, bank, _mixed(), placed=True)
    nobody = cohort._places
    before = [each[nobody].clone() for each in cohort._stack.learned]
    while cohort.trainees:
        cohort.step()
    assert cohort._state.optimizer._steps[nobody] > 0
    assert all(torch.equal(old, each[nobody]) for old, each in zip(before, cohort._stack.learned, strict=True))


def test_who_takes_the_place_of_another_is_tuned_as_if_it_were_new(plm: Plm, bank: Bank) -> None:
    chosen = TuningSettings(**QUICK)
    dataset = _labelled(11, ("a", "b", "c"))
    ends = []
    for before in (0, 1):
        cohort = Cohort(plm, bank, chosen, places=1, classes=3, placed=True)
        for each in [_labelled(20, ("x", "y")), dataset][1 - before :]:
            trainee = enrol(plm, "one", each, each.labels, chosen)
            cohort.admit([trainee])
            while cohort.trainees:
                cohort.step()
        ends.append([each[trainee.place].clone() for each in cohort._stack.learned])
    assert all(torch.equal(fresh, used) for fresh, used in zip(*ends, strict=True))


def test_a_step_that_no_shape_holds_is_packed(plm: Plm, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows of more than sixteen tokens, where a part may have 64."""
    packed: list[str] = []
    step = PackedStep.step

    def noted(self: PackedStep, turns: Any, losses: Tensor) -> None:
        packed.extend(each.trainee.name for each in turns)
        step(self, turns, losses)

    def data() -> list[Dataset]:
        return [_labelled(12, ("a", "b")), _labelled(16, ("a", "b"), longest=30)]

    monkeypatch.setattr(PackedStep, "step", noted)
    cohort = _cohort(plm, bank, data(), placed=True, batch_tokens=64)
    cohort.step()
    assert packed == ["1"]
    packed.clear()
    assert _difference(plm, bank, data, batch_tokens=64) < ROUNDING
    assert packed == ["0", "1", "1"]


def test_a_shape_that_the_device_has_no_room_for_is_packed_and_not_tried_again(
    plm: Plm, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(GraphSet, "capture", lambda self, sizes, prepare: tried.extend(sizes))
    assert _difference(plm, bank, _mixed) == 0
    cohort = _cohort(plm, bank, [_labelled(12, ("a", "b"))], placed=True)
    tried.clear()
    while cohort.trainees:
        cohort.step()
    assert tried == [(1, 4, 16, 0)]
    assert cohort.padding == 0
