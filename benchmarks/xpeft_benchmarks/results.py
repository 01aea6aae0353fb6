"""One measured thing as one line of JSON, with all that is needed to measure it again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from xpeft_server.output_file import output_file

from .machine import machine, versions
from .rounds import Ratio

Unit = Literal["texts", "requests", "calls", "tokens", "profiles"]


@dataclass(frozen=True, slots=True)
class Context:
    """What all lines of one run share: the command as typed, its settings in full, machine, versions and time."""

    benchmark: str
    command: str
    settings: Mapping[str, object]
    machine: Mapping[str, object]
    versions: Mapping[str, str]
    date: str

    @classmethod
    def now(cls, benchmark: str, command: str, settings: Mapping[str, object]) -> Context:
        return cls(
            benchmark=benchmark,
            command=command,
            settings=settings,
            machine=machine(),
            versions=versions(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@dataclass(frozen=True, slots=True)
class Result:
    """One variant.

    Args:
        variant: its name, alone within a run.
        meaning: what was timed, in a sentence.
        unit: what is counted.
        speeds: units a second, a value for each round.
        ratios: against variants of the same run; above 1 is faster than that one.
        details: further numbers, units in their names.
    """

    variant: str
    meaning: str
    unit: Unit
    speeds: Sequence[float]
    ratios: Sequence[Ratio] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.speeds)

    def line(self, context: Context) -> dict[str, Any]:
        """The JSON object that is written."""
        return {
            "benchmark": context.benchmark,
            "variant": self.variant,
            "meaning": self.meaning,
            "unit": self.unit,
            "per_second": _short(self.per_second),
            "rounds": [_short(speed) for speed in self.speeds],
            "ratios": [{**each._asdict(), **_rounded(each)} for each in self.ratios],
            "details": dict(self.details),
            **{name: value for name, value in asdict(context).items() if name != "benchmark"},
        }


def write_lines(path: Path, results: Iterable[Result], context: Context) -> None:
    """A line of JSON for each result; the file is replaced, by all of them or not at all. Raises: OSError."""
    lines = [json.dumps(result.line(context), ensure_ascii=False) for result in results]
    data = "\n".join(lines).encode() + b"\n"
    if path.exists() and not path.is_file():  # a pipe or a terminal
        path.write_bytes(data)
        return
    with output_file(path, overwrite=True) as file:
        file.write(data)


def table_rows(results: Iterable[Result]) -> list[tuple[str, ...]]:
    """For people: variant, speed, ratios, and the details that are numbers."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        ratios = "; ".join(
            f"{each.median:.3f} of {each.to} ({each.low:.3f} to {each.high:.3f})" for each in result.ratios
        )
        details = ", ".join(
            f"{name} {_short(value)}" for name, value in result.details.items() if isinstance(value, int | float)
        )
        rows.append((result.variant, f"{result.per_second:,.1f} {result.unit}/s", ratios, details))
    return rows


TABLE_COLUMNS = ("variant", "median speed", "ratio, same run (quartiles)", "details")


def _rounded(each: Ratio) -> dict[str, float]:
    return {"median": round(each.median, 4), "low": round(each.low, 4), "high": round(each.high, 4)}


def _short(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")
