"""``xpeft bench tune``: how many profiles a second are tuned together, by either kind of step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import NamedTuple, Protocol

import numpy as np

from .results import Result
from .rounds import interleaved, ratio
from .texts import sample_texts

PACKED = "packed"
PLACED = "placed"
LABELS = ("a", "b")
_MEANINGS = {
    PACKED: "steps of any shape, rows of all profiles end to end, launched operator by operator",
    PLACED: "steps of few shapes, rows padded; on a GPU each is a CUDA graph",
}


@dataclass(frozen=True, slots=True)
class TunePlan:
    """What to measure: P profiles with ``rows`` train rows each, all of them tuned together."""

    plm: str
    bank: str
    device: str
    dtype: str
    profiles: int
    rows: int
    epochs: int
    batch_rows: int
    batch_tokens: int
    rounds: int
    seed: int = 0

    def settings(self) -> dict[str, object]:
        return asdict(self)


class Row(NamedTuple):
    """Of one profile."""

    text: str
    label: str


class Tuning(Protocol):
    """Profiles that are tuned together, again and again, with what was made ready for the first of them."""

    @property
    def padding(self) -> float:
        """Share of the steps' tokens that nobody reads."""
        ...

    def begin(self, rows: Sequence[Sequence[Row]]) -> None:
        """A profile for each: tokenised rows, a place, a head to start with."""
        ...

    def step(self) -> bool:
        """One update of every profile; whether there are more to come. The last one waits for the device."""
        ...


class _Turn(NamedTuple):
    """Seconds until all profiles had begun, seconds of all steps, and how many those were."""

    begun: float
    stepped: float
    steps: int


def run_tune(
    plan: TunePlan, pool: Sequence[str], make: Callable[[bool], Tuning], *, on_step: Callable[[str], None]
) -> list[Result]:
    """Args: make: profiles with placed steps (true) or packed ones. Raises: ModelError, BankError, TuningError."""
    rows = _rows(plan, pool)
    on_step(f"loading {plan.plm} in {plan.dtype} on {plan.device}")
    tunings = {PACKED: make(False), PLACED: make(True)}
    for name, tuning in tunings.items():
        on_step(f"warming up: {plan.profiles} profiles, {name}")
        _tuned(tuning, rows)
    turns: dict[str, list[_Turn]] = defaultdict(list)
    for name in interleaved(
        tunings, plan.rounds, plan.seed, on_round=lambda number: on_step(f"round {number} of {plan.rounds}")
    ):
        turns[name].append(_tuned(tunings[name], rows))
    speeds = {name: [plan.profiles / (each.begun + each.stepped) for each in turns[name]] for name in tunings}
    return [
        Result(
            variant=name,
            meaning=f"{plan.profiles} profiles from their texts to the last epoch's profile: {_MEANINGS[name]}",
            unit="profiles",
            speeds=speeds[name],
            ratios=[ratio(PACKED, speeds[name], speeds[PACKED])] if name != PACKED else (),
            details=_details(turns[name], tuning.padding),
        )
        for name, tuning in tunings.items()
    ]


def _rows(plan: TunePlan, pool: Sequence[str]) -> list[list[Row]]:
    """Rows with alternating labels: the speed of tuning does not depend on what there is to learn."""
    texts = sample_texts(pool, plan.profiles * plan.rows, np.random.default_rng(plan.seed))
    labelled = [Row(text, LABELS[number % len(LABELS)]) for number, text in enumerate(texts)]
    return [labelled[start : start + plan.rows] for start in range(0, len(labelled), plan.rows)]


def _tuned(tuning: Tuning, rows: Sequence[Sequence[Row]]) -> _Turn:
    start = time.perf_counter()
    tuning.begin(rows)
    begun = time.perf_counter()
    steps = 1
    while tuning.step():
        steps += 1
    return _Turn(begun - start, time.perf_counter() - begun, steps)


def _details(turns: Sequence[_Turn], padding: float) -> dict[str, float]:
    return {
        "steps_per_s": round(median(each.steps / each.stepped for each in turns), 6),
        "begin_s": round(median(each.begun for each in turns), 6),
        "steps_s": round(median(each.stepped for each in turns), 6),
        "padding": round(padding, 4),
    }
