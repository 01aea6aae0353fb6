"""A sweep of rates for people: how it looks from outside, and where the time went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..results import Result


class Table(NamedTuple):
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def load_tables(results: Sequence[Result]) -> list[Table]:
    """Of what `results_of` found: latency and goodput, the stages, and what each target keeps up with."""
    points = [result for result in results if "rate" in result.details]
    found = [_latency(points), _stages(points)]
    if any(result.ratios or "p50_ratio" in result.details for result in points):
        found.append(_compared(points))
    rest = [result for result in results if "rate" not in result.details]
    return [*found, Table(("at least 99 % kept", "up to"), [(r.variant, f"{r.per_second:g} requests/s") for r in rest])]


def _latency(results: Sequence[Result]) -> Table:
    columns = (
        "target, rate",
        "answered/s",
        "within/s",
        "share",
        "p50 ms",
        "p90",
        "p95",
        "p99",
        "429",
        "failed",
        "client",
    )
    return Table(columns, [_latency_row(result.variant, result.per_second, result.details) for result in results])


def _latency_row(variant: str, goodput: float, details: Mapping[str, Any]) -> tuple[str, ...]:
    late = details["client_late_ms"]["p99"]
    return (
        variant,
        f"{details['answered_per_second']:.1f}",
        f"{goodput:.1f}",
        f"{details['share_within']:.1%}",
        *(_shown(details[f"p{point}_ms"]) for point in (50, 90, 95, 99)),
        str(details["refused_429"]),
        str(details["other_errors"] + details["unanswered"]),
        f"late: p99 {late} ms, do not trust" if details["client_was_late"] else "in time",
    )


def _stages(results: Sequence[Result]) -> Table:
    """p50 and p99 of each."""
    names = list(dict.fromkeys(name for result in results for name in result.details["stages_ms"]))
    rows = []
    for result in results:
        stages = result.details["stages_ms"]
        cells = (
            f"{_shown(each['p50'])} / {_shown(each['p99'])}" if (each := stages.get(name)) else "" for name in names
        )
        rows.append((result.variant, *cells))
    return Table(("p50 / p99 ms", *(name.replace("_", " ") for name in names)), rows)


def _compared(results: Sequence[Result]) -> Table:
    """Of the first target's results."""
    rows = []
    for result in results:
        details = result.details
        ratios = [(f"{each.median:.3f}", each.to) for each in result.ratios] or [("", "")]
        cells = [
            f"{details[f'p{point}_ratio']:.3f} ({details[f'p{point}_ratio_low']:.3f} to"
            f" {details[f'p{point}_ratio_high']:.3f})"
            if f"p{point}_ratio" in details
            else ""
            for point in (50, 95, 99)
        ]
        if any(cells) or result.ratios:
            rows.append((result.variant, ratios[0][0], *cells))
    return Table(("against the other target", "within/s", "p50 (quartiles)", "p95", "p99"), rows)


def _shown(milliseconds: float | None) -> str:
    return "" if milliseconds is None or math.isnan(milliseconds) else f"{milliseconds:.1f}"
