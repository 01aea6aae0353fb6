"""Samples of servers and engine to results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ..results import Result
from ..rounds import Ratio, percentiles, ratio
from ..stretches import Sample, Stretch

HTTP = "http"
ENGINE = "engine"
INFINITY = "infinity"
_POINTS = (50, 90, 99)


def results_of(
    stretches: Mapping[str, Stretch],
    samples: Mapping[str, Sequence[Sample]],
    *,
    facts: Mapping[str, Mapping[str, float]],
) -> list[Result]:
    """A result a variant, those over HTTP with their ratio to the engine and to infinity at the same concurrency.

    Args:
        facts: first word of the variants' names → details of the whole run.
    """
    results = []
    for name, stretch in stretches.items():
        kind = name.partition(" ")[0]
        others = _others(kind, stretch.concurrency)
        results.append(
            Result(
                variant=name,
                meaning=stretch.meaning,
                unit="texts",
                speeds=[sample.speed for sample in samples[name]],
                ratios=[_speed_ratio(samples, name, other) for other in others if other in samples],
                details={
                    **_latency(samples[name]),
                    **_per_text(samples[name]),
                    **_over_forward(samples, name),
                    **facts.get(kind, {}),
                },
            )
        )
    return results


def _others(kind: str, concurrency: int) -> tuple[str, ...]:
    engine = f"{ENGINE} batch={concurrency}"
    return {HTTP: (engine, f"{INFINITY} c={concurrency}"), INFINITY: (engine,)}.get(kind, ())


def _speed_ratio(samples: Mapping[str, Sequence[Sample]], name: str, other: str) -> Ratio:
    return ratio(other, [sample.speed for sample in samples[name]], [sample.speed for sample in samples[other]])


def _latency(samples: Sequence[Sample]) -> dict[str, float]:
    """Over all rounds together, in milliseconds."""
    every = [1000 * latency for sample in samples for latency in sample.latencies]
    return {f"p{point}_ms": round(value, 3) for point, value in zip(_POINTS, percentiles(every, _POINTS), strict=True)}


def _per_text(samples: Sequence[Sample]) -> dict[str, float]:
    """Means over all rounds of what the server tells: header times and CPU time of a text, texts of a batch."""
    sums = {name: sum(sample.totals[name] for sample in samples) for name in samples[0].totals}
    texts = sum(sample.answered for sample in samples)
    details = {
        f"mean_{name.removesuffix('_seconds')}_ms": round(1000 * value / texts, 3)
        for name, value in sums.items()
        if name.endswith("_seconds") and value
    }
    if sums.get("batches"):
        details["mean_batch"] = round(sums["batch_texts"] / sums["batches"], 2)
    return details


def _over_forward(samples: Mapping[str, Sequence[Sample]], name: str) -> dict[str, float]:
    """One request at a time: how much longer it takes than the forward alone, median of the rounds."""
    alone = samples.get(f"{ENGINE} batch=1")
    if name != f"{HTTP} c=1" or alone is None:
        return {}
    differences = [
        statistics.median(served.latencies) - statistics.median(forward.latencies)
        for served, forward in zip(samples[name], alone, strict=True)
    ]
    return {"p50_over_forward_ms": round(1000 * statistics.median(differences), 3)}
