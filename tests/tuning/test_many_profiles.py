"""`tune_profiles`; that company changes nothing is test_company's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from xpeft_profiles import write_profile_file
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import Plm
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.errors import DataTooSmall, TuningSettingsInvalid, Unservable
from xpeft_tuning.mask_tuner import Refused, Tuned, TuningProgress, TuningTask, tune_profile, tune_profiles
from xpeft_tuning.settings import TuningSettings

MakeDataset = Callable[..., Dataset]
FEW: dict[str, Any] = {"epochs": 2, "head_penalty": 1.0}


def _named(plm: Plm, bank: Bank, datasets: dict[str, Dataset], *, places: int = 2, **settings: Any) -> dict[str, Any]:
    """Each task's outcome by name, in the order in which they came."""
    tasks = [TuningTask(name, dataset) for name, dataset in datasets.items()]
    classes = max(len(dataset.labels) for dataset in datasets.values())
    found = list(tune_profiles(plm, bank, tasks, TuningSettings(**settings), places=places, classes=classes))
    assert sorted(each.name for each in found) == sorted(datasets)
    return {each.name: each.result if isinstance(each, Tuned) else each for each in found}


def test_every_task_comes_out_once_and_refused_ones_disturb_nobody(
    plm: Plm, bank: Bank, make_dataset: MakeDataset
) -> None:
    good = {f"good {rows}": make_dataset(rows, ("x", "y"), seed=rows) for rows in (21, 8, 30)}
    lacks = replace(make_dataset(9), labels=("red", "green", "blue", "white"))
    mixed = {"one label": make_dataset(5, ("x",)), **good, "lacks a label": lacks}
    alone, together = _named(plm, bank, good, **FEW), _named(plm, bank, mixed, **FEW)
    assert [name for name in together if name in good] == list(alone)
    for name, tuned in alone.items():
        assert together[name].profile.version == tuned.profile.version
        assert together[name][1:] == tuned[1:]
    assert isinstance(together["one label"], Refused)
    assert isinstance(together["one label"].reason, DataTooSmall)
    assert str(together["lacks a label"].reason) == "label 'white' has no train row to learn it from"


def test_if_all_are_refused_nothing_else_comes(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    outcomes = _named(plm, bank, {name: make_dataset(5, ("x",)) for name in "abcde"})
    assert all(isinstance(each, Refused) for each in outcomes.values())
    assert list(tune_profiles(plm, bank, [], TuningSettings(), places=3, classes=2)) == []


def test_a_profile_that_cannot_be_served_is_refused_among_others(
    plm: Plm, bank: Bank, make_dataset: MakeDataset, linear: Dataset
) -> None:
    rows = tuple(replace(row, label=1e6 * float(row.label)) for row in linear.examples)
    outcomes = _named(
        plm, bank, {"big": replace(linear, examples=rows), "good": make_dataset(12), "num": linear}, **FEW
    )
    assert isinstance(outcomes["big"], Refused)
    assert isinstance(outcomes["big"].reason, Unservable)
    assert outcomes["good"].profile.labels == ("red", "green", "blue")
    assert outcomes["num"].profile.labels == ("value",)


def test_the_same_tasks_give_the_same_bytes(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    tasks = {f"{rows}": make_dataset(rows, seed=rows) for rows in (20, 9, 14)}
    first, again = (_named(plm, bank, tasks, gumbel=0.5, **FEW) for _ in range(2))
    assert list(first) == list(again)
    for name, tuned in first.items():
        assert write_profile_file(tuned.profile) == write_profile_file(again[name].profile)
        assert tuned[1:] == again[name][1:]


def test_many_profiles_are_measured_as_one_alone_is(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(40)
    alone = tune_profile(plm, bank, dataset, TuningSettings(**FEW))
    tuned = _named(plm, bank, {"one": dataset, "other": make_dataset(12, ("x", "y"))}, **FEW)["one"]
    assert tuned.train.loss == pytest.approx(alone.train.loss, rel=1e-4)
    assert tuned.held_out.loss == pytest.approx(alone.held_out.loss if alone.held_out else None, rel=1e-4)
    assert (tuned.majority, tuned.epoch, tuned.cut) == (alone.majority, alone.epoch, alone.cut)
    assert tuned.head_alone is None
    assert alone.head_alone is not None


def test_progress_tells_of_every_step_and_no_more_profiles_at_once_than_places(
    plm: Plm, bank: Bank, make_dataset: MakeDataset
) -> None:
    rows = {"a": 40, "b": 20, "c": 60, "d": 20}
    asked: list[str] = []
    seen: list[TuningProgress] = []

    def tasks() -> Iterator[TuningTask]:
        for name, count in rows.items():
            asked.append(name)
            yield TuningTask(name, make_dataset(count))

    settings = TuningSettings(**FEW, held_out=0.0, batch_rows=20)
    done = [
        (outcome.name, len(asked))
        for outcome in tune_profiles(plm, bank, tasks(), settings, places=2, classes=3, progress=seen.append)
    ]
    assert done == [("b", 2), ("a", 3), ("d", 4), ("c", 4)]
    steps = defaultdict(list)
    for each in seen:
        steps[each.name].append((each.epoch, each.epochs, each.step, each.steps))
    for name, count in rows.items():
        last = count // 20
        assert steps[name] == [(epoch, 2, step, last) for epoch in (1, 2) for step in range(1, last + 1)]
    assert [each.name for each in seen] == list("ab" * 2 + "ac" * 2 + "cd" * 2 + "c" * 2)
    assert all(each.loss > 0 for each in seen)


def test_a_stopped_profile_gives_its_place_to_one_that_waits(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    settings = TuningSettings(
        epochs=30, lr_head=0.5, lr_masks=5, lr_norm=0.5, stop_on="loss", patience=2, head_penalty=1.0
    )
    seen: list[TuningProgress] = []
    tasks = [TuningTask(name, make_dataset(60, seed=seed)) for seed, name in enumerate("ab")]
    outcomes = list(tune_profiles(plm, bank, tasks, settings, places=1, classes=3, progress=seen.append))
    for outcome in outcomes:
        assert isinstance(outcome, Tuned)
        last = max(each.epoch for each in seen if each.name == outcome.name)
        assert last == outcome.result.epoch + 2 < 30
    names = [each.name for each in seen]
    assert names == sorted(names)
    assert set(names) == {"a", "b"}


def test_labels_among_completions_are_refused_and_completions_among_labels(
    decoder: Plm, make_dataset: MakeDataset
) -> None:
    bank = open_bank("random:N=8,R=8,seed=1,std=0.3", decoder.facts)
    answers = Dataset(tuple(Example("w1 w2", f"w{place}") for place in range(6)), (), completions=True)
    tasks = [TuningTask("labels", make_dataset(12)), TuningTask("answers", answers)]
    for completes, good, message in (
        (True, "answers", "the rows have labels, those of the others completions"),
        (False, "labels", "the rows have completions, those of the others labels"),
    ):
        settings = TuningSettings(**FEW)
        found = tune_profiles(decoder, bank, tasks, settings, places=2, classes=3, completes=completes)
        outcomes = {each.name: each for each in found}
        assert isinstance(outcomes[good], Tuned)
        (refused,) = (each for name, each in outcomes.items() if name != good)
        assert isinstance(refused, Refused)
        assert str(refused.reason) == message


def test_numbers_have_no_accuracy_to_stop_on_among_others_either(plm: Plm, bank: Bank, linear: Dataset) -> None:
    (refused,) = _named(plm, bank, {"num": linear}, stop_on="accuracy").values()
    assert isinstance(refused.reason, TuningSettingsInvalid)
