"""The plot of a sweep of rates, as a picture or as a page."""

from __future__ import annotations

import html
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ..machine import machine
from .plan import LoadPlan
from .sweep import Sweep, needs

_SUFFIXES: Final = (".png", ".html")
_DOTS_PER_INCH: Final = 150
# Letters stay letters, so that a page can be searched; the same numbers give the same file.
_SVG: Final[Any] = {"svg.fonttype": "none", "svg.hashsalt": "xpeft", "font.family": "sans-serif"}


class PlotInvalid(ValueError):
    """A plot cannot be written under this name; the message says what a name can end in."""


def check_plot(path: Path) -> None:
    """Before anything is measured. Raises: PlotInvalid; BenchExtraMissing without matplotlib."""
    if path.suffix not in _SUFFIXES:
        raise PlotInvalid(f"plot {str(path)!r} does not end in .png or .html")
    needs("matplotlib")


def write_plot(path: Path, sweep: Sweep, plan: LoadPlan) -> None:
    """A picture, or a page with the same picture in it, which needs no network. Raises: OSError."""
    from matplotlib import rc_context

    from .figure import load_figure

    title = _title(sweep, plan)
    with rc_context(_SVG):
        figure = load_figure(sweep.points, plan.slo, title=title, subtitle=_subtitle(plan))
        drawn = io.BytesIO()
        if path.suffix == ".png":
            figure.savefig(drawn, format="png", dpi=_DOTS_PER_INCH)
        else:
            figure.savefig(drawn, format="svg", metadata={"Date": None})
    content = drawn.getvalue() if path.suffix == ".png" else _page(title, drawn.getvalue().decode()).encode()
    path.write_bytes(content)


def _title(sweep: Sweep, plan: LoadPlan) -> str:
    """What was asked of which model: of targets that are alike once, else of each."""
    models = (f"{facts['plm']}, {facts['dtype']} on {facts['device']}" for facts in sweep.facts.values())
    return f"POST /v1/{plan.kind}: {' | '.join(dict.fromkeys(models))}"


def _subtitle(plan: LoadPlan) -> str:
    here = machine()
    whose = "client" if all(target.url for target in plan.targets) else "server and client"
    rounds = "one round" if plan.rounds == 1 else f"medians of {plan.rounds} rounds"
    return (
        f"{whose} on {here['cpu']}, {here['cores']} cores; {datetime.now(UTC):%Y-%m-%d}\n"
        f"{plan.profiles} profiles ({plan.popularity}), Poisson arrivals, {plan.seconds:g} s a rate, {rounds};"
        " hollow: the client was late"
    )


def _page(title: str, svg: str) -> str:
    drawing = svg[svg.index("<svg") :]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        "<style>body { margin: 2rem auto; max-width: 60rem } svg { width: 100%; height: auto }</style></head>\n"
        f"<body>\n{drawing}</body>\n</html>\n"
    )
