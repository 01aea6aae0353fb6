from __future__ import annotations

from pathlib import Path

import pytest

from xpeft_quality.cell import Cell, append_cells, read_cells
from xpeft_quality.data_sets import SETS, TaskSet, UserSet, read_set
from xpeft_quality.table import table


def _cell(method: str, seed: int, value: float, set_: str = "SST-2") -> Cell:
    return Cell(set_, method, seed, value, seconds=1.0)


def test_a_table_has_means_and_deviations_and_says_how_many_seeds_there_were() -> None:
    cells = [_cell("a", 0, 0.8), _cell("a", 1, 0.9), _cell("a", 2, 0.7), _cell("b", 0, 0.5), _cell("b", 0, 0.25, "RTE")]
    assert table([*cells, _cell("b", 1, 0.7)]).splitlines() == [
        "| method | SST-2 | RTE |",
        "|---|---|---|",
        "| a | 0.800 ± 0.100 | – |",
        "| b | 0.600 ± 0.141 (2 seeds) | 0.250 (1 seed) |",
    ]


def test_cells_come_back_and_the_last_of_equal_ones_counts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cells.jsonl"
    assert read_cells(path) == []
    append_cells(path, [_cell("a", 0, 0.1), _cell("a", 1, 0.2)])
    append_cells(path, [_cell("a", 0, 0.3)])
    assert [(cell.seed, cell.value) for cell in read_cells(path)] == [(0, 0.3), (1, 0.2)]


@pytest.fixture(scope="module")
def data(project_root: Path) -> Path:
    folder = project_root.parent / "shared" / "data"
    if not folder.exists():
        pytest.skip("the evaluation data is not here")
    return folder


@pytest.mark.parametrize("name", SETS)
def test_what_measures_is_never_learned_from(data: Path, name: str) -> None:
    measured = read_set(name, data)
    if isinstance(measured, TaskSet):
        assert {row.split for row in measured.dataset.examples} == {"train", "test"}
        assert len(measured.dataset.labels) == 2
        return
    assert isinstance(measured, UserSet)
    assert not measured.seen.keys() & measured.unseen.keys()
    assert (len(measured.seen), len(measured.unseen)) == {"critics": (600, 200), "movielens_like": (225, 75)}[name]
    assert all({row.split for row in each.examples} >= {"train", "test"} for each in measured.unseen.values())
    assert all({row.split for row in each.examples} == {"train", "dev"} for each in measured.seen.values())
