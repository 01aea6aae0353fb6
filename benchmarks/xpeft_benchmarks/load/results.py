"""What a sweep of rates says: a result for each target at each rate, and one for what each target keeps up with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..results import Result
from ..rounds import median, percentiles, ratio
from .exchange import OK, TOTAL
from .points import POINTS, Point
from .slo import Slo
from .sweep import Sweep

MOST_KEPT: Final = 0.99
_BUSY: Final = 429
_TOKEN_POINTS: Final = (50, 95, 100)
_COMPARED: Final = (50, 95, 99)


def results_of(sweep: Sweep, slo: Slo, what: str) -> list[Result]:
    """The first target's results have ratios to the second's, where there is one: above 1 more goodput, or longer.

    Args:
        what: was sent, such as ``POST /v1/classify``.
    """
    others = {(point.target, point.rate): point for point in sweep.points}
    names = list(sweep.facts)
    results = []
    for point in sweep.points:
        other = others[names[1], point.rate] if len(names) > 1 and point.target == names[0] else None
        results.append(_result(point, other, slo, what))
    return [*results, *(_within(name, sweep, slo) for name in names)]


def largest_rate(points: Sequence[Point], slo: Slo, place: int) -> float:
    """Up to which the limits were kept by 99 % of the requests at every rate, in one round; 0 if at none.

    Args:
        points: of one target, the rates rising.
    """
    largest = 0.0
    for point in points:
        if point.rounds[place].share(slo) < MOST_KEPT:
            break
        largest = point.rate
    return largest


def _result(point: Point, other: Point | None, slo: Slo, what: str) -> Result:
    goodput = [stretch.goodput(slo) for stretch in point.rounds]
    compared = [] if other is None else [stretch.goodput(slo) for stretch in other.rounds]
    return Result(
        variant=f"{point.target} {point.rate:g}/s",
        meaning=f"{what}, {point.rate:g} a second, Poisson: answered with 200 within {slo}",
        unit="requests",
        speeds=goodput,
        ratios=[ratio(f"{other.target} {other.rate:g}/s", goodput, compared)] if other and all(compared) else [],
        details={**_counts(point, slo), **_times(point), **_of_client(point), **_ratios(point, other), **_used(point)},
    )


def _within(name: str, sweep: Sweep, slo: Slo) -> Result:
    points = [point for point in sweep.points if point.target == name]
    details: dict[str, Any] = {"target": dict(sweep.facts[name])}
    if name in sweep.capacities:
        details["with_32_in_flight"] = _rounded(sweep.capacities[name])
    return Result(
        variant=f"{name} within {slo}",
        meaning=f"largest rate up to which at least {MOST_KEPT:.0%} of requests were answered with 200 within {slo}",
        unit="requests",
        speeds=[largest_rate(points, slo, place) for place in range(len(points[0].rounds))],
        details=details,
    )


def _counts(point: Point, slo: Slo) -> dict[str, Any]:
    statuses = Counter(each.status for each in point.exchanges())
    tokens = [each.tokens for each in point.exchanges() if each.status == OK]
    found: dict[str, Any] = {
        "rate": point.rate,
        "requests": statuses.total(),
        "answered_per_second": _rounded(median([stretch.answered() for stretch in point.rounds])),
        "share_within": round(median([stretch.share(slo) for stretch in point.rounds]), 4),
        "refused_429": statuses[_BUSY],
        "other_errors": statuses.total() - statuses[OK] - statuses[_BUSY] - statuses[0],
        "unanswered": statuses[0],
    }
    if tokens:
        found["tokens"] = {f"p{each}": value for each, value in _at(tokens, _TOKEN_POINTS).items()}
    if problem := next((stretch.problem for stretch in point.rounds if stretch.problem), ""):
        found["first_problem"] = problem
    return found


def _times(point: Point) -> dict[str, Any]:
    """In milliseconds: medians of the rounds' quantiles; of the whole latency every round's, too."""
    total = point.quantiles(TOTAL)
    found: dict[str, Any] = {f"p{each}_ms": _ms(median(rounds)) for each, rounds in total.items()}
    found["rounds_ms"] = {f"p{each}": [_ms(value) for value in rounds] for each, rounds in total.items()}
    found["stages_ms"] = {
        stage: {f"p{each}": _ms(median(rounds)) for each, rounds in point.quantiles(stage).items()}
        for stage in point.stages()
        if stage != TOTAL
    }
    return found


def _of_client(point: Point) -> dict[str, Any]:
    exchanges = point.exchanges()
    late = _at([each.late for each in exchanges], POINTS)
    return {
        "client_was_late": point.client_was_late(),
        "client_late_ms": {f"p{each}": _ms(value) for each, value in late.items()},
        "client_cpu_ms": _ms(sum(stretch.client_cpu for stretch in point.rounds) / len(exchanges)),
    }


def _used(point: Point) -> dict[str, Any]:
    """Means, of what the server tells of itself."""
    sums: Counter[str] = Counter()
    for stretch in point.rounds:
        sums.update(stretch.used)
    found: dict[str, Any] = {}
    if sums["batches"]:
        found["mean_batch"] = round(sums["batch_texts"] / sums["batches"], 2)
    if sums["server_cpu_seconds"]:
        found["server_cpu_ms"] = _ms(sums["server_cpu_seconds"] / len(point.exchanges()))
    return found


def _ratios(point: Point, other: Point | None) -> dict[str, float]:
    """This latency over the other's, round by round: below 1 is quicker. The median, and the quartiles."""
    found: dict[str, float] = {}
    if other is None:
        return found
    mine, theirs = point.quantiles(TOTAL), other.quantiles(TOTAL)
    for each in _COMPARED:
        pairs = [pair for pair in zip(mine[each], theirs[each], strict=True) if not any(map(math.isnan, pair))]
        if pairs:
            compared = ratio(other.target, *map(list, zip(*pairs, strict=True)))
            found[f"p{each}_ratio"] = round(compared.median, 4)
            found[f"p{each}_ratio_low"] = round(compared.low, 4)
            found[f"p{each}_ratio_high"] = round(compared.high, 4)
    return found


def _at(values: Sequence[float], points: Sequence[int]) -> Mapping[int, float]:
    return dict(zip(points, percentiles(values, points), strict=True))


def _ms(seconds: float) -> float | None:
    """None where it is not a number, which JSON has no word for."""
    return None if math.isnan(seconds) else round(1000 * seconds, 3)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
