"""``xpeft bench generate``: the generation engine beside transformers, on the same prompts in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

import numpy as np

from ..results import Result
from ..rounds import interleaved
from ..texts import sample_texts
from .crew import CONTINUOUS, Crew
from .results import GenerateSample, Variant, missing, results_of
from .work import GeneratePlan as GeneratePlan
from .work import Work, draw_work

_TEXTS_A_PROMPT: Final = 4
_CALIBRATIONS: Final = 3
_ARRIVING_SHARE: Final = 0.5

Step = Callable[[str], None]


def run_generate(plan: GeneratePlan, pool: Sequence[str], *, on_step: Step) -> list[Result]:
    """Start the processes, see how fast padded batches are, warm up, and measure in interleaved rounds.

    Raises: WorkerFailed.
    """
    rng = np.random.default_rng(plan.seed)
    work = draw_work(plan, rng)
    texts = sample_texts(pool, _TEXTS_A_PROMPT * plan.requests, rng)
    with ExitStack() as stack:
        crew = Crew(plan, work, texts, stack, on_step=on_step)
        if crew.missing is not None:
            on_step(f"{CONTINUOUS} DOES NOT RUN HERE: {crew.missing}")
        at_once = crew.at_once()
        on_step(f"warming up {len(at_once)} variants")
        _warm_up(at_once)
        seconds = _arriving_seconds(at_once[crew.padded], work)
        staggered = crew.staggered(seconds)
        on_step(f"warming up {len(staggered)} more, whose requests come within {seconds:.3f} s")
        _warm_up(staggered)
        variants = at_once | staggered
        results = results_of(variants, _measure(plan, variants, on_step))
    return results if crew.missing is None else [*results, missing(CONTINUOUS, crew.missing, plan.rounds)]


def _warm_up(variants: Mapping[str, Variant]) -> None:
    for variant in variants.values():
        variant.run()


def _arriving_seconds(padded: Variant, work: Work) -> float:
    """Half of the time that padded batches would take for the staggered answers if they wrote nothing in vain."""
    speed = statistics.median(padded.run().speed for _ in range(_CALIBRATIONS))
    return _ARRIVING_SHARE * sum(work.mixed_new) / speed


def _measure(plan: GeneratePlan, variants: Mapping[str, Variant], on_step: Step) -> dict[str, list[GenerateSample]]:
    samples: dict[str, list[GenerateSample]] = {name: [] for name in variants}
    for name in interleaved(
        variants, plan.rounds, plan.seed, on_round=lambda number: on_step(f"round {number} of {plan.rounds}")
    ):
        samples[name].append(variants[name].run())
    return samples
