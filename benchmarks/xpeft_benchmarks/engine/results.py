"""Turns of ``xpeft bench engine`` to results."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from ..results import Result
from ..rounds import median, ratio
from ..turns import Turn

BARE: Final = "bare"
WARM: Final = "engine warm"
COLD: Final = "engine cold"
FEW: Final = 32
"""Profiles that other numbers of profiles are compared with."""


def registered_name(profiles: int) -> str:
    return f"engine {profiles} profiles"


class Variant(NamedTuple):
    """``run`` gives a turn of so many seconds; ``facts`` are details that are known before."""

    meaning: str
    run: Callable[[float], Awaitable[Turn]]
    facts: Mapping[str, int]
    against: tuple[str, ...] = ()


def results_of(prefix: str, variants: Mapping[str, Variant], turns: Mapping[str, Sequence[Turn]]) -> list[Result]:
    """A result a variant, in their order, with its ratio to those of ``against`` that were measured."""
    speeds = {name: [turn.speed for turn in each] for name, each in turns.items()}
    return [
        Result(
            variant=f"{prefix} {name}",
            meaning=variant.meaning,
            unit="texts",
            speeds=speeds[name],
            ratios=[
                ratio(f"{prefix} {other}", speeds[name], speeds[other])
                for other in variant.against
                if other in variants and other != name
            ],
            details={**variant.facts, **_medians(turns[name])},
        )
        for name, variant in variants.items()
    ]


def _medians(turns: Sequence[Turn]) -> dict[str, float]:
    """Medians over the rounds, without what nobody measured."""
    every = {
        "mean_batch": [turn.texts / turn.batches for turn in turns],
        "device_busy": [turn.busy_seconds / turn.seconds for turn in turns],
        "hidden": [turn.hidden for turn in turns],
        "device_ms": [1000 * turn.busy_seconds / turn.batches for turn in turns],
        "host_ms": [1000 * turn.host_seconds / turn.batches for turn in turns],
        "made_share": [turn.made / turn.texts for turn in turns],
        "read_share": [turn.read / turn.texts for turn in turns],
    }
    return {name: round(value, 4) for name, values in every.items() if not math.isnan(value := median(values))}
