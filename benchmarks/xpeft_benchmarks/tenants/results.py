"""Open-loop stretches to results. A stretch is, for each stream, when each request was due, its latency and status."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from ..results import Result
from ..rounds import percentiles, ratio

Stretch = list[dict[str, list[float]]]
Each = TypeVar("Each")

_OK: Final = 200
_COLUMNS: Final = ("due", "latencies", "statuses")
_POINTS: Final = (50, 95, 99)


class Neighbours(NamedTuple):
    """The first stream of each stretch is the neighbour's."""

    quiet: list[Stretch]
    greedy: list[Stretch]


class Flood(NamedTuple, Generic[Each]):
    """One of each for the quiet time before, the flood, and the quiet time that follows at once."""

    before: Each
    during: Each
    after: Each


def latencies_of(stretch: Stretch, *, but_first: bool = False) -> list[float]:
    """Seconds, of the requests that were answered with 200."""
    return [
        latency
        for stream in stretch[1 if but_first else 0 :]
        for latency, status in zip(stream["latencies"], stream["statuses"], strict=True)
        if status == _OK
    ]


def statuses_of(stretch: Stretch) -> Counter[int]:
    return Counter(int(status) for stream in stretch for status in stream["statuses"])


def due_within(stretch: Stretch, start: float, end: float) -> Stretch:
    """What was due from ``start`` on and before ``end``, its ``due`` counted from ``start``."""
    found: Stretch = []
    for stream in stretch:
        rows = [row for row in zip(*(stream[name] for name in _COLUMNS), strict=True) if start <= row[0] < end]
        moved = [(due - start, *rest) for due, *rest in rows]
        found.append({name: [row[place] for row in moved] for place, name in enumerate(_COLUMNS)})
    return found


def recovery(after: Stretch, normal: float) -> float:
    """Seconds until everything that was sent later was answered with 200 within twice the ``normal`` seconds."""
    return max((due for due, latency, status in _rows(after) if status != _OK or latency > 2 * normal), default=0.0)


def _rows(stretch: Stretch) -> Iterator[tuple[float, ...]]:
    for stream in stretch:
        yield from zip(*(stream[name] for name in _COLUMNS), strict=True)


def neighbour_results(rounds: Neighbours, *, tenants: int, share: float, greed: float, seconds: float) -> list[Result]:
    """The others' latency beside a neighbour within its share and beside a greedy one."""
    p95 = {
        name: [1000 * percentiles(latencies_of(stretch, but_first=True), [95])[0] for stretch in stretches]
        for name, stretches in rounds._asdict().items()
    }
    meanings = {
        "quiet": f"{tenants} tenants, {share:.1f} requests a second each: what all but the first got",
        "greedy": f"the same, the first tenant with {greed:g} times as many",
    }
    results = []
    for name, stretches in rounds._asdict().items():
        answered = [statuses_of(stretch[1:])[_OK] / seconds for stretch in stretches]
        first = [statuses_of(stretch[:1]) for stretch in stretches]
        others = sum((statuses_of(stretch[1:]) for stretch in stretches), Counter[int]())
        details: dict[str, float | str] = {
            **_latency([latency for stretch in stretches for latency in latencies_of(stretch, but_first=True)]),
            "neighbour_answered_per_second": round(statistics.median(each[_OK] for each in first) / seconds, 1),
            "neighbour_refused": sum(each[429] for each in first),
            "others_refused": others.total() - others[_OK],
        }
        if name == "greedy":
            compared = ratio("quiet", p95["greedy"], p95["quiet"])
            details |= {
                "p95_ratio": round(compared.median, 4),
                "p95_ratio_low": round(compared.low, 4),
                "p95_ratio_high": round(compared.high, 4),
            }
        results.append(Result(f"neighbour {name}", meanings[name], "requests", answered, details=details))
    return results


def flood_results(flood: Flood[Stretch], capacity: float, *, times: float) -> list[Result]:
    """What an overloaded server does, and how soon it recovers."""
    meanings = Flood(
        before="all tenants within their share",
        during=f"{times:g} times what the server can do, from all tenants alike",
        after="within their share again, from the flood's last request on",
    )
    results = []
    for name, meaning in meanings._asdict().items():
        stretch: Stretch = getattr(flood, name)
        statuses = statuses_of(stretch)
        details: dict[str, float] = {
            **_latency(latencies_of(stretch)),
            "refused_429": statuses[429],
            "other_errors": statuses.total() - statuses[_OK] - statuses[429] - statuses[0],
            "unanswered": statuses[0],
        }
        speed = statuses[_OK] / max(due + latency for due, latency, _ in _rows(stretch))
        if name == "during":
            details["goodput_of_capacity"] = round(speed / capacity, 4)
        if name == "after" and (normal := latencies_of(flood.before)):
            details["recovery_seconds"] = round(recovery(stretch, percentiles(normal, [99])[0]), 2)
        results.append(Result(f"flood {name}", meaning, "requests", [speed], details=details))
    return results


def _latency(latencies: Sequence[float]) -> dict[str, float]:
    """None where nothing was answered."""
    if not latencies:
        return {}
    found = percentiles([1000 * each for each in latencies], list(_POINTS))
    return {f"p{point}_ms": round(value, 2) for point, value in zip(_POINTS, found, strict=True)}
