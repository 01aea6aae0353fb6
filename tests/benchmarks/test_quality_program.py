"""benchmarks/quality.py as it is called, over GLUE files of a few rows and a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import quality
from xpeft_quality.cell import read_cells
from xpeft_server.model.plm import DEFAULT_PLM, Plm, load_plm

Call = Callable[..., Result]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with an RTE of 12 train and 4 dev rows, and an SST-2 of as many."""
    for name, header in (("RTE", "sentence1\tsentence2\tlabel"), ("SST-2", "sentence\tlabel")):
        folder = tmp_path / "data" / "glue" / name
        folder.mkdir(parents=True)
        for split, rows in (("train", 12), ("dev", 4)):
            lines = [
                f'w{row} "w1\tw2\t{"ab"[row % 2]}' if name == "RTE" else f"w{row}\t{row % 2}" for row in range(rows)
            ]
            (folder / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n")
    return tmp_path / "data"


@pytest.fixture
def call(data: Path, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    loaded: list[Plm] = []

    def load_tiny(name: str, *, dtype: torch.dtype) -> Plm:
        assert name == DEFAULT_PLM
        loaded.append(load_plm(str(tiny_bert), dtype=dtype))
        return loaded[-1]

    monkeypatch.setattr(quality, "load_plm", load_tiny)

    def call(command: str, *arguments: str) -> Result:
        folders = ["--data", str(data), "--banks", str(tmp_path / "banks")] if command == "run" else []
        return CliRunner().invoke(
            quality.app, [command, *folders, "--results", str(tmp_path / "cells.jsonl"), *arguments]
        )

    return call


def test_a_run_measures_what_is_missing_and_a_table_shows_it(call: Call, tmp_path: Path) -> None:
    method = ["--methods", "one adapter; random bank N=100, soft"]
    for seeds in ("0", "0,1"):
        result = call("run", "--sets", "RTE,SST-2", "--seeds", seeds, *method)
        assert result.exit_code == 0, result.output
    lines = (tmp_path / "cells.jsonl").read_text().splitlines()
    cells = read_cells(tmp_path / "cells.jsonl")
    assert len(lines) == len(cells)  # nothing was measured twice
    names = ("one adapter", "random bank N=100, soft", "head alone")
    assert [(cell.seed, cell.set, cell.method) for cell in cells] == [
        (seed, of, name) for seed in (0, 1) for of in ("RTE", "SST-2") for name in names
    ]
    assert {cell.context["dtype"] for cell in cells} == {"bfloat16"}
    assert call("table").exit_code == 0
    table = (tmp_path / "cells.md").read_text().splitlines()
    assert table[0] == "| method | RTE | SST-2 |"
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in names]
    assert all(line.count("(2 seeds)") == 2 for line in table[2:])


def test_methods_are_measured_on_the_sets_that_they_are_for(call: Call, tmp_path: Path) -> None:
    result = call("run", "--sets", "RTE", "--seeds", "0", "--methods", "one adapter for all;one adapter")
    assert result.exit_code == 0, result.output
    assert [cell.method for cell in read_cells(tmp_path / "cells.jsonl")] == ["one adapter"]


def test_cells_of_another_number_format_are_refused_and_nothing_is_measured(call: Call, tmp_path: Path) -> None:
    run = ("run", "--sets", "RTE", "--seeds", "0", "--methods", "one adapter")
    assert call(*run, "--dtype", "float32").exit_code == 0
    before = (tmp_path / "cells.jsonl").read_text()
    refused = call(*run, "--dtype", "bfloat16")
    assert refused.exit_code == 2
    assert "RTE, one adapter, seed 0 in float32, not bfloat16" in " ".join(refused.output.replace("│", "").split())
    assert (tmp_path / "cells.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--sets", "RTE,SST2", "'SST2'"),
        ("--methods", "one adaptor", "'one adaptor'"),
        ("--dtype", "float16", "'float16'"),
        ("--seeds", "0,one", "'one'"),
        ("--seeds", "-1", "'-1'"),
    ],
)
def test_what_is_not_there_is_refused_by_name_and_nothing_is_measured(
    call: Call, tmp_path: Path, option: str, value: str, word: str
) -> None:
    result = call("run", "--sets", "RTE", "--methods", "one adapter", option, value)
    assert result.exit_code == 2
    assert word in result.output
    assert option in result.output
    assert not (tmp_path / "cells.jsonl").exists()
