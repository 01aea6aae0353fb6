"""Samples of generation to results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..results import Result
from ..rounds import percentiles, ratio

_POINTS = (50, 95)


@dataclass(frozen=True, slots=True)
class GenerateSample:
    """What one stretch gave.

    Args:
        tokens: those that were asked for; what a padded batch writes beyond them does not count.
        seconds: from the first arrival to the last end.
        first_token, total: seconds of each request, from its arrival.
        batches: that the requests were put into; 0 where they join and leave one by one.
    """

    tokens: int
    seconds: float
    first_token: list[float]
    total: list[float]
    batches: int = 0

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


class Variant(NamedTuple):
    """``run`` answers all requests once; ``arriving`` are the seconds within which they come, 0 if all are there."""

    meaning: str
    run: Callable[[], GenerateSample]
    against: tuple[str, ...] = ()
    arriving: float = 0.0


def results_of(variants: Mapping[str, Variant], samples: Mapping[str, Sequence[GenerateSample]]) -> list[Result]:
    """A result a variant, in their order, with its ratio to those of ``against`` that were measured."""
    speeds = {name: [sample.speed for sample in each] for name, each in samples.items()}
    return [
        Result(
            variant=name,
            meaning=variant.meaning,
            unit="tokens",
            speeds=speeds[name],
            ratios=[ratio(other, speeds[name], speeds[other]) for other in variant.against if other in speeds],
            details={**_arriving(variant), **_latency(samples[name]), **_batches(samples[name])},
        )
        for name, variant in variants.items()
    ]


def missing(name: str, reason: str, rounds: int) -> Result:
    """A variant that cannot be measured here: no tokens a second, and why."""
    return Result(
        variant=f"{name} DOES NOT RUN HERE",
        meaning=f"{name}: {reason}",
        unit="tokens",
        speeds=[0.0] * rounds,
        details={"failed": reason},
    )


def _arriving(variant: Variant) -> dict[str, float]:
    return {"arriving_s": round(variant.arriving, 3)} if variant.arriving else {}


def _latency(samples: Sequence[GenerateSample]) -> dict[str, float]:
    """Over all rounds together, in milliseconds."""
    found = {}
    for name in ("first_token", "total"):
        every = [1000 * seconds for sample in samples for seconds in getattr(sample, name)]
        for point, value in zip(_POINTS, percentiles(every, _POINTS), strict=True):
            found[f"{name}_p{point}_ms"] = round(value, 2)
    return found


def _batches(samples: Sequence[GenerateSample]) -> dict[str, float]:
    if not all(sample.batches for sample in samples):
        return {}
    return {"mean_batch": round(statistics.mean(len(each.total) / each.batches for each in samples), 2)}
