"""What a target did at one rate, round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..rounds import percentiles
from .exchange import FIRST_TOKEN, OK, TOTAL, Exchange
from .slo import Slo

POINTS: Final = (50, 90, 95, 99)
_MOST_LATE: Final = 0.1
_COMPARED: Final = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Stretch:
    """One target at one rate in one round.

    Args:
        seconds: in which the requests were due.
        exchanges: all of them, one at least.
        client_cpu: seconds of CPU time that the client took.
        used: what the server did meanwhile, by name (see `server_counters`); empty where it is not told.
        problem: the first answer that was not 200, empty if there was none.
    """

    seconds: float
    exchanges: Sequence[Exchange]
    client_cpu: float = 0.0
    used: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    def answered(self) -> float:
        """Requests answered with 200, of a second's."""
        return sum(each.status == OK for each in self.exchanges) / self.seconds

    def goodput(self, slo: Slo) -> float:
        """Requests answered with 200 within the limits, of a second's."""
        return sum(map(slo.is_kept, self.exchanges)) / self.seconds

    def share(self, slo: Slo) -> float:
        """Part of the requests that were due whose answer was 200 and within the limits."""
        return sum(map(slo.is_kept, self.exchanges)) / len(self.exchanges)

    def stage(self, name: str) -> list[float]:
        """Seconds, of the answers with 200 that tell of this stage."""
        return [each.stages[name] for each in self.exchanges if name in each.stages]

    def quantiles(self, name: str) -> list[float]:
        """Seconds at each of ``POINTS``; not a number where no answer tells of this stage."""
        return _quantiles(self.stage(name), POINTS)

    def client_was_late(self) -> bool:
        """Whether its own delay was more than a tenth of the latency, of streams to the first token.

        Like is compared with like: p50, p95 and p99 of one with those of the other.
        """
        late = _quantiles([each.late for each in self.exchanges], _COMPARED)
        whole = _quantiles(self.stage(FIRST_TOKEN) or self.stage(TOTAL), _COMPARED)
        return any(own > _MOST_LATE * of_all for own, of_all in zip(late, whole, strict=True))


@dataclass(slots=True)
class Point:
    """A target at one rate (requests a second), in all rounds."""

    target: str
    rate: float
    rounds: list[Stretch] = field(default_factory=list)

    def exchanges(self) -> list[Exchange]:
        return [each for stretch in self.rounds for each in stretch.exchanges]

    def stages(self) -> list[str]:
        """Names of all stages that any answer told of, in the order of their first telling."""
        return list(dict.fromkeys(name for each in self.exchanges() for name in each.stages))

    def quantiles(self, stage: str) -> dict[int, list[float]]:
        """Point in percent → seconds in each round."""
        rounds = [stretch.quantiles(stage) for stretch in self.rounds]
        return {point: [each[place] for each in rounds] for place, point in enumerate(POINTS)}

    def client_was_late(self) -> bool:
        """In half of the rounds or more: then medians are no longer to be trusted."""
        return 2 * sum(stretch.client_was_late() for stretch in self.rounds) >= len(self.rounds)


def _quantiles(values: Sequence[float], points: Sequence[float]) -> list[float]:
    return percentiles(values, points) if values else [math.nan] * len(points)
