"""Arrival times of an open loop: they do not depend on answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Phase(NamedTuple):
    """``rates``: of each stream, a second."""

    rates: Sequence[float]
    seconds: float


def arrivals(phases: Sequence[Phase], seed: int) -> list[tuple[float, int]]:
    """Poisson arrivals of phases one after the other: (seconds from the start, stream), in order.

    A stream's arrivals do not depend on the others' rates: streams that two stretches share arrive at the same moments,
    and equal phases have the same bursts.
    """
    phases = list(phases)
    found: list[tuple[float, int]] = []
    start = 0.0
    for phase in phases:
        rates, seconds = phase
        number = phases.index(phase)
        for stream, rate in enumerate(rates):
            rng = np.random.default_rng((seed, number, stream))
            moments = start + rng.uniform(0, seconds, rng.poisson(rate * seconds))
            found += [(float(moment), stream) for moment in moments]
        start += seconds
    return sorted(found)


def arrivals_at(rate: float, seconds: float, seed: int | Sequence[int]) -> list[float]:
    """Poisson arrivals conditioned on their number, which is the rate's: independent uniform moments.

    So rounds and targets are compared at exactly the rate that was asked for. Seconds from the start, in order.
    """
    return sorted(np.random.default_rng(seed).uniform(0, seconds, round(rate * seconds)).tolist())
