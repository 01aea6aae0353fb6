"""How good profiles are: every method on every set, three seeds each, as a table.

    python benchmarks/quality.py run --data ../shared/data --sets critics --methods "trained bank N=100, hard"
    python benchmarks/quality.py table

Cells are appended to a file as they are done; a cell that is there is not measured again.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xpeft_benchmarks.machine import machine, versions
from xpeft_quality.cell import append_cells, read_cells
from xpeft_quality.data_sets import SETS, read_set
from xpeft_quality.measurement import METHODS, measure, methods_for
from xpeft_quality.progress import Show
from xpeft_quality.table import table
from xpeft_quality.user_methods import Kept
from xpeft_server.model.plm import DEFAULT_PLM, load_plm

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False, help=__doc__)


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="Folder with glue/ and personal/.")],
    sets: Annotated[str, typer.Option(help=f"Of {', '.join(SETS)}; several with commas.")] = ",".join(SETS),
    methods: Annotated[
        str, typer.Option(help="Several with semicolons, each on the sets that it is for; all if left out.")
    ] = ";".join(METHODS),
    seeds: Annotated[str, typer.Option(help="Several with commas.")] = "0,1,2",
    dtype: Annotated[str, typer.Option(help="Of the language model: float32 or bfloat16.")] = "bfloat16",
    banks: Annotated[Path, typer.Option(help="Where trained banks are kept.")] = Path("quality-banks"),
    results: Annotated[Path, typer.Option(help="Cells, a line of JSON each.")] = RESULTS,
) -> None:
    """Measure cells that are not in the file of results yet."""
    chosen_sets = _among(SETS, sets.split(","), "--sets")
    chosen_methods = _among(METHODS, methods.split(";"), "--methods")
    chosen_seeds = [_seed(each) for each in seeds.split(",")]
    [chosen_dtype] = _among(DTYPES, [dtype], "--dtype")
    _check_results(results, chosen_dtype)
    plm = load_plm(DEFAULT_PLM, dtype=DTYPES[chosen_dtype])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for seed in chosen_seeds:
            for name in chosen_sets:
                measured = read_set(name, data)
                for method in methods_for(measured):
                    if method not in chosen_methods or _is_there(results, name, method, seed):
                        continue
                    show = Show(bar, f"{name}, {method}, seed {seed}")
                    cells = measure(
                        plm, measured, method, seed, kept=Kept(banks), show=show, context=_context(chosen_dtype)
                    )
                    append_cells(results, cells)
                    show.end()


@app.command("table")
def write_table(
    results: Annotated[Path, typer.Option(help="Cells, a line of JSON each.")] = RESULTS,
) -> None:
    """Write the table beside the file of results, as Markdown."""
    path = results.with_suffix(".md")
    path.write_text(table(read_cells(results)), encoding="utf-8")
    typer.echo(f"wrote {path}")


def _among(known: Iterable[str], names: Iterable[str], option: str) -> list[str]:
    """Raises: typer.BadParameter for a name that is none."""
    every, chosen = list(known), [name.strip() for name in names]
    for name in chosen:
        if name not in every:
            raise typer.BadParameter(f"{name!r} is none of: {'; '.join(every)}", param_hint=option)
    return chosen


def _seed(text: str) -> int:
    if not text.strip().isdecimal():
        raise typer.BadParameter(f"{text!r} is no whole number from 0 up", param_hint="--seeds")
    return int(text)


def _check_results(results: Path, dtype: str) -> None:
    """Raises: typer.BadParameter if there are cells of another dtype: no table tells them apart."""
    for cell in read_cells(results):
        if cell.context["dtype"] != dtype:
            found = f"{cell.set}, {cell.method}, seed {cell.seed} in {cell.context['dtype']}"
            raise typer.BadParameter(f"{results} has {found}, not {dtype}: name another file", param_hint="--results")


def _is_there(results: Path, name: str, method: str, seed: int) -> bool:
    return any((cell.set, cell.method, cell.seed) == (name, method, seed) for cell in read_cells(results))


def _context(dtype: str) -> dict[str, object]:
    return {
        "command": shlex.join(sys.argv),
        "dtype": dtype,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
    }


if __name__ == "__main__":
    app()
