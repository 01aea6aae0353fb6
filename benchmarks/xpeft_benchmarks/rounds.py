"""Interleaved rounds: whatever slows the machine down for a while slows every variant."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """How many times as fast as ``to``: the median of the rounds' ratios, and their quartiles."""

    to: str
    median: float
    low: float
    high: float


def interleaved(
    variants: Iterable[str], rounds: int, seed: int, *, on_round: Callable[[int], None] = lambda _: None
) -> Iterator[str]:
    """Every variant once a round, each round in another random order. ``on_round``: its number, once it is over."""
    order, rng = list(variants), random.Random(seed)
    for number in range(rounds):
        rng.shuffle(order)
        yield from order
        on_round(number + 1)


def time_interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    seed: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Run every variant once to warm up, then once a round in a random order.

    Returns: variant → seconds of each round.
    """
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for name in interleaved(variants, rounds, seed, on_round=on_round):
        start = clock()
        variants[name]()
        seconds[name].append(clock() - start)
    return seconds


def ratio(to: str, speeds: Sequence[float], others: Sequence[float]) -> Ratio:
    """Compare speeds (anything a second), round by round, with those of ``to``."""
    each = [speed / other for speed, other in zip(speeds, others, strict=True)]
    low, high = np.quantile(each, [0.25, 0.75])
    return Ratio(to, statistics.median(each), float(low), float(high))


def percentiles(values: Sequence[float], points: Sequence[float]) -> list[float]:
    """Linear between neighbours; ``points`` in percent."""
    return [float(value) for value in np.percentile(values, points)]


def median(values: Sequence[float]) -> float:
    """The median of the values that are numbers; not a number if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
