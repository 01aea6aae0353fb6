"""How good profiles are: every method on every set, three seeds each, as a table.

    python benchmarks/quality.py run --data ../shared/data --sets critics --methods "trained bank N=100, hard"
    python benchmarks/quality.py table

Cells are appended to a file as they are done; a cell that is there is not measured again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xpeft_benchmarks.machine import machine, versions
from xpeft_quality.cell import Cell, append_cells, read_cells
from xpeft_quality.data_sets import SETS, TaskSet, UserSet, read_set
from xpeft_quality.progress import Show
from xpeft_quality.table import table
from xpeft_quality.task_methods import TASK_METHODS
from xpeft_quality.user_methods import USER_METHODS, Kept
from xpeft_server.model.plm import DEFAULT_PLM, Plm, load_plm

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False, help=__doc__)


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="Folder with glue/ and personal/.")],
    sets: Annotated[str, typer.Option(help=f"Of {', '.join(SETS)}; several with commas.")] = ",".join(SETS),
    methods: Annotated[str, typer.Option(help="Several with semicolons; all if left out.")] = "",
    seeds: Annotated[str, typer.Option(help="Several with commas.")] = "0,1,2",
    dtype: Annotated[str, typer.Option(help="Of the language model: float32 or bfloat16.")] = "bfloat16",
    banks: Annotated[Path, typer.Option(help="Where trained banks are kept.")] = Path("quality-banks"),
    results: Annotated[Path, typer.Option(help="Cells, a line of JSON each.")] = RESULTS,
) -> None:
    """Measure cells that are not in the file of results yet."""
    plm = load_plm(DEFAULT_PLM, dtype={"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for seed in map(int, seeds.split(",")):
            for name in sets.split(","):
                measured = read_set(name, data)
                for method in wanted(measured, methods):
                    if not any(
                        (cell.set, cell.method, cell.seed) == (name, method, seed) for cell in read_cells(results)
                    ):
                        show = Show(bar, f"{name}, {method}, seed {seed}")
                        append_cells(results, cells(plm, measured, method, seed, dtype, banks, show))
                        show.end()


@app.command("table")
def write_table(
    results: Annotated[Path, typer.Option(help="Cells, a line of JSON each.")] = RESULTS,
) -> None:
    """Write the table beside the file of results, as Markdown."""
    path = results.with_suffix(".md")
    path.write_text(table(read_cells(results)), encoding="utf-8")
    typer.echo(f"wrote {path}")


def wanted(measured: TaskSet | UserSet, methods: str) -> list[str]:
    every = list(TASK_METHODS if isinstance(measured, TaskSet) else USER_METHODS)
    chosen = [each.strip() for each in methods.split(";") if each.strip()] or every
    return [each for each in every if each in chosen]


def cells(
    plm: Plm, measured: TaskSet | UserSet, method: str, seed: int, dtype: str, banks: Path, show: Show
) -> list[Cell]:
    """A training may answer for more than one method: each becomes a cell."""
    began = time.perf_counter()
    if isinstance(measured, TaskSet):
        learned = TASK_METHODS[method](plm, measured, seed, show)
        values = {name: score_of(measured, score) for name, score in learned.scores.items()}
        details: dict[str, object] = {**learned.details, "scores": {n: s._asdict() for n, s in learned.scores.items()}}
    else:
        answers = USER_METHODS[method](plm, measured, seed, Kept(banks), show)
        values, details = answers.accuracy, {"users": answers.users, "rows": answers.rows}
    seconds = round(time.perf_counter() - began, 1)
    context = {
        "command": " ".join(sys.argv),
        "dtype": dtype,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
    }
    return [Cell(measured.name, name, seed, value, seconds, details, context) for name, value in values.items()]


def score_of(measured: TaskSet, score: object) -> float:
    """The set's metric; Matthews' correlation is Pearson's of two labels."""
    value = getattr(score, "accuracy" if measured.metric == "accuracy" else "correlation")
    return float(value)


if __name__ == "__main__":
    app()
