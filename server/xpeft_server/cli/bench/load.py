"""``xpeft bench load``: how a server keeps up with requests that do not wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..https_options import https_options, take_https_options
from ..out_option import write_out_file
from ..screen import say, show_rows
from ..setting_options import add_options, field_options
from .load_asked import AskedLoad
from .report import failures_told, run, step, writable

if TYPE_CHECKING:
    from xpeft_benchmarks.load.sweep import Sweep
    from xpeft_benchmarks.results import Result


def load(context: typer.Context, **options: Any) -> None:  # of `AskedLoad` and `https_options`
    """Measure latency and goodput of a running server, or of two side by side, at rising rates of requests.

    An open loop: requests are sent when they are due (Poisson), answered or not, and latency counts from then. Without
    --url it starts xpeft serve as bench serve does. Two servers get the same requests at the same moments, in turns.

    Example: xpeft bench load --url https://xpeft.internal --rates 50,100,200 --slo 100ms --plot load.png
    """
    from xpeft_benchmarks.load.failures import LOAD_FAILURES
    from xpeft_benchmarks.load.plot import write_plot
    from xpeft_benchmarks.load.results import results_of
    from xpeft_benchmarks.load.sweep import run_load

    tls = take_https_options(options)
    asked = AskedLoad(**options)
    asked.check(context)
    with failures_told(LOAD_FAILURES):
        if asked.plot is not None:
            _check_plot(asked.plot)
        plan = asked.plan(tls)
        sweeps: list[Sweep] = []

        def measure(pool: Sequence[str]) -> list[Result]:
            sweeps.append(run_load(plan, pool, on_step=step))
            return results_of(sweeps[0], plan.slo, f"POST /v1/{plan.kind}")

        run("load", plan.settings(), measure, asked.data, asked.json, show=_show)
        if asked.plot is not None:
            write_out_file(asked.plot, lambda path: write_plot(path, sweeps[0], plan))
            say(f"wrote {asked.plot}")


add_options(load, [*field_options(AskedLoad), *https_options()])


def _check_plot(plot: Path) -> None:
    from xpeft_benchmarks.load.plot import check_plot

    check_plot(plot)
    writable(plot)


def _show(results: Sequence[Result]) -> None:
    from xpeft_benchmarks.load.tables import load_tables

    for number, table in enumerate(load_tables(results)):
        if number:
            say("")
        show_rows(table.columns, table.rows)
