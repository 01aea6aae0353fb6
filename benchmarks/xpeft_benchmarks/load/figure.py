"""A sweep of rates drawn: latency and goodput against the rate of requests. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from ..rounds import median
from .exchange import FIRST_TOKEN, PER_TOKEN, TOTAL
from .points import Point
from .slo import Slo

_LINES: Final = {50: "-", 95: "--", 99: ":"}
_COLOURS: Final = ("#1b6ca8", "#c1440e")
_GREY: Final = "#6b6b6b"


def load_figure(points: Sequence[Point], slo: Slo, *, title: str, subtitle: str) -> Figure:
    """Latency above, goodput below, over the same rates; of streams to the first token, and a token's after it.

    Values are medians of the rounds. Marks are hollow where the client was late.
    """
    streams = any(FIRST_TOKEN in point.stages() for point in points)
    figure = Figure(figsize=(9, 10 if streams else 8), layout="constrained")
    heights = (3, 3, 2) if streams else (3, 2)
    *above, below = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    if streams:
        _draw_latency(above[0], points, FIRST_TOKEN, "time to first token, ms", slo.seconds)
        _draw_latency(above[1], points, PER_TOKEN, "time of a token after it, ms", slo.per_token)
    else:
        _draw_latency(above[0], points, TOTAL, "latency, ms", slo.seconds)
    _draw_goodput(below, points, slo)
    for axes in (*above, below):
        axes.grid(visible=True, color="#e2e2e2", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (above[0], below):
        axes.legend(fontsize=9, loc="upper left", edgecolor="none", framealpha=0.9, ncols=len(_names(points)))
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    above[0].set_title(subtitle, fontsize=9, color=_GREY, loc="left")
    return figure


def _draw_latency(axes: Axes, points: Sequence[Point], stage: str, label: str, limit: float) -> None:
    for name, colour in zip(_names(points), _COLOURS, strict=False):
        own = [point for point in points if point.target == name]
        for quantile, line in _LINES.items():
            values = [1000 * median(point.quantiles(stage)[quantile]) for point in own]
            axes.plot([point.rate for point in own], values, line, color=colour, label=f"{name}  p{quantile}")
            _mark(axes, own, values, colour)
    axes.set(yscale="log", ylabel=label)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    if math.isfinite(limit):
        axes.axhline(1000 * limit, color=_GREY, linewidth=1)
        axes.text(
            *(1, 1000 * limit, f"limit {1000 * limit:g} ms"),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            color=_GREY,
            fontsize=9,
        )


def _draw_goodput(axes: Axes, points: Sequence[Point], slo: Slo) -> None:
    rates = sorted({0.0, *(point.rate for point in points)})
    for name, colour in zip(_names(points), _COLOURS, strict=False):
        own = [point for point in points if point.target == name]
        values = [median([stretch.goodput(slo) for stretch in point.rounds]) for point in own]
        axes.plot([point.rate for point in own], values, color=colour, label=name)
        _mark(axes, own, values, colour)
    axes.plot(rates, rates, color=_GREY, linewidth=1, zorder=1, label="all that were sent")
    axes.set(xlabel="rate, requests sent a second", ylabel=f"answered within\n{slo}, a second")
    axes.set(xlim=(0, None), ylim=(0, None))


def _mark(axes: Axes, points: Sequence[Point], values: Sequence[float], colour: str) -> None:
    for point, value in zip(points, values, strict=True):
        face = "white" if point.client_was_late() else colour
        axes.plot([point.rate], [value], "o", markersize=5, markeredgecolor=colour, markerfacecolor=face, zorder=3)


def _names(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.target for point in points))
