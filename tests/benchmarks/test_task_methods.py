"""Every method of GLUE tasks, from the rows to the cell, over a tiny model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from rich.progress import Progress

from xpeft_quality import task_methods
from xpeft_quality.cell import Cell, append_cells, read_cells
from xpeft_quality.data_sets import Metric, TaskSet
from xpeft_quality.measurement import measure
from xpeft_quality.progress import Show
from xpeft_quality.task_methods import TASK_METHODS
from xpeft_quality.user_methods import Kept
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.plm import Plm
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.mask_tuner import TunedProfile

LABELS = ("0", "1")
TRAIN, TEST, WRONG = 40, 16, (0, 1, 2)
"""Rows, and the test rows whose label is not what their words say."""


def _task(name: str, metric: Metric, *, turned: bool = False) -> TaskSet:
    """Words decide a train row's label. Args: turned: whether every test row has the other label."""
    rng = np.random.default_rng(0)
    rows = []
    for place in range(TRAIN + TEST):
        label = place % 2
        words = [f"w{word}" for word in rng.integers(10 * label, 10 * label + 10, 6)]
        test = place >= TRAIN
        given = label ^ (test and ((place - TRAIN in WRONG) ^ turned))
        pair = " ".join(words[4:]) if place % 3 else None
        rows.append(Example(" ".join(words[:4]), LABELS[given], pair, "test" if test else "train"))
    return TaskSet(name, metric, Dataset(tuple(rows), LABELS))


class _Run(NamedTuple):
    """``bank`` and ``profile`` of the methods that tune one; ``shown``: steps that the bar has, and is to have."""

    cells: dict[str, Cell]
    bank: Bank | None
    profile: TunedProfile | None
    shown: tuple[float, float | None]


class _Measure:
    """Methods over the tiny model, each metric, method and seed once."""

    def __init__(self, plm: Plm, bar: Progress, folder: Path) -> None:
        self._plm, self._bar, self._folder = plm, bar, folder
        self._runs: dict[Any, _Run] = {}

    def __call__(self, task: TaskSet, method: str, seed: int = 0) -> _Run:
        key = (task.metric, method, seed)
        if key not in self._runs:
            self._runs[key] = self._run(task, method, seed)
        return self._runs[key]

    def _run(self, task: TaskSet, method: str, seed: int) -> _Run:
        tuned: list[tuple[Bank | None, TunedProfile | None]] = []
        tune_profile = task_methods.tune_profile

        def noted(plm: Plm, bank: Bank, *more: Any) -> TunedProfile:
            found = tune_profile(plm, bank, *more)
            tuned.append((bank, found))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task_methods, "tune_profile", noted)
            show = Show(self._bar, method)
            cells = measure(self._plm, task, method, seed, kept=Kept(self._folder), show=show, context={"of": "a test"})
        bank, profile = tuned[0] if tuned else (None, None)
        shown = self._bar.tasks[-1]
        return _Run({cell.method: cell for cell in cells}, bank, profile, (shown.completed, shown.total))


@pytest.fixture(scope="module")
def run(plm, bar, tmp_path_factory) -> _Measure:
    return _Measure(plm, bar, tmp_path_factory.mktemp("no-banks"))


@pytest.fixture(scope="module")
def straight() -> TaskSet:
    return _task("CoLA", "matthews")


@pytest.fixture(scope="module")
def turned() -> TaskSet:
    """Trained as the straight one."""
    return _task("CoLA", "accuracy", turned=True)


def _score(cell: Cell) -> dict[str, Any]:
    score = cell.details["scores"][cell.method]
    assert isinstance(score, dict)
    return score


@pytest.mark.parametrize("method", TASK_METHODS)
def test_a_method_gives_a_cell_of_its_name_over_all_test_rows(
    run: _Measure, straight: TaskSet, method: str, tmp_path: Path
) -> None:
    found = run(straight, method)
    beside = {"one": [], "random": ["head alone"], "trained": ["mixture of 8, merged"]}[method.split()[0]]
    assert list(found.cells) == [method, *beside]
    for cell in found.cells.values():
        score = _score(cell)
        assert (cell.set, cell.seed, cell.context) == ("CoLA", 0, {"of": "a test"})
        assert score["rows"] == TEST
        # A text that is not sure of its label may be given the wrong one, but not all that are wrong.
        assert 0.75 <= score["accuracy"] <= 1 - (len(WRONG) - 1) / TEST
        assert 0 < cell.value < score["accuracy"]
        assert cell.value == score["correlation"]
        assert 0 < score["loss"] < np.log(2) + 0.1
    append_cells(tmp_path / "cells", found.cells.values())
    assert read_cells(tmp_path / "cells") == list(found.cells.values())
    assert found.shown[0] == found.shown[1]


@pytest.mark.parametrize("method", TASK_METHODS)
def test_a_method_learns_nothing_from_the_rows_that_measure(
    run: _Measure, straight: TaskSet, turned: TaskSet, method: str
) -> None:
    """Test rows with the other label turn the score around and change nothing else."""
    one, other = run(straight, method), run(turned, method)
    assert list(one.cells) == list(other.cells)
    for name, cell in other.cells.items():
        before, after = _score(one.cells[name]), _score(cell)
        assert cell.value == after["accuracy"] == pytest.approx(1 - before["accuracy"])
        assert after["correlation"] == pytest.approx(-before["correlation"])
        assert after["loss"] > before["loss"]
    if one.profile is not None:
        assert other.profile is not None
        assert one.profile.profile.version == other.profile.profile.version


@pytest.mark.parametrize("method", [each for each in TASK_METHODS if each != "one adapter"])
def test_a_method_tunes_the_masks_that_its_name_says(run: _Measure, straight: TaskSet, method: str) -> None:
    adapters, kind = re.fullmatch(r"\w+ bank N=(\d+), (hard|soft)", method).groups()
    tuned = run(straight, method).profile
    assert tuned is not None
    assert tuned.profile.mask_a.shape == (2, int(adapters))
    assert tuned.profile.hard == (kind == "hard")
    assert tuned.profile.k == (int(adapters) // 2 if kind == "hard" else None)


def test_methods_measure_what_is_different_differently_and_what_is_the_same_equally(
    run: _Measure, straight: TaskSet
) -> None:
    cells = [cell for method in TASK_METHODS for cell in run(straight, method).cells.values()]
    losses: dict[str, set[float]] = {}
    for cell in cells:
        losses.setdefault(cell.method, set()).add(_score(cell)["loss"])
    assert {name: len(found) for name, found in losses.items()} == dict.fromkeys(losses, 1)
    assert set(losses) == {*TASK_METHODS, "head alone", "mixture of 8, merged"}
    every = sorted(loss for [loss] in losses.values())
    assert np.diff(every).min() > 1e-6


@pytest.mark.parametrize("method", ["one adapter", "random bank N=100, hard", "trained bank N=8, soft"])
def test_the_seed_decides(run: _Measure, straight: TaskSet, method: str) -> None:
    first, other, again = run(straight, method, 0), run(straight, method, 1), run._run(straight, method, 1)
    losses = [_score(each.cells[method])["loss"] for each in (first, other, again)]
    assert losses[0] != losses[1] == losses[2]
    if first.bank is not None:
        assert other.bank is not None
        assert first.bank.fingerprint != other.bank.fingerprint


@pytest.mark.parametrize("method", [each for each in TASK_METHODS if each.startswith("random")])
def test_values_of_a_random_bank_are_as_large_for_every_size(run: _Measure, straight: TaskSet, method: str) -> None:
    bank = run(straight, method).bank
    assert bank is not None
    for part in (bank.down, bank.up):
        assert part.float().std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("method", TASK_METHODS)
def test_answers_that_never_change_correlate_with_nothing(plm: Plm, show: Show, method: str, tmp_path: Path) -> None:
    rows = [Example("w1", LABELS[place % 2], None, "train" if place < 12 else "test") for place in range(16)]
    task = TaskSet("RTE", "matthews", Dataset(tuple(rows), LABELS))
    cells = measure(plm, task, method, 0, kept=Kept(tmp_path), show=show, context={})
    assert [cell.value for cell in cells] == [0.0] * len(cells)
    assert [_score(cell)["correlation"] for cell in cells] == [None] * len(cells)
