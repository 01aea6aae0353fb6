"""``xpeft bench load``: latency and goodput of servers at rising rates of requests, answered or not (an open loop)."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

import numpy as np

from ..processes.workers import Worker
from ..stretches import RequestsFailed
from .exchange import OK, Exchange
from .plan import LoadPlan, RatesInvalid
from .points import Point, Stretch
from .targets import LoadTarget, open_targets
from .work import LoadWork, draw_load

_AT_ONCE: Final = 32  # requests in flight where the server is to be busy
_BUSY: Final = 429
_FEWEST: Final = 20  # requests at one rate in one round: fewer have no quantiles
_INSTALL: Final = ".venv/bin/pip install -c constraints.txt -e '.[bench]'"
_STEPS: Final = 9
_LOWEST, _HIGHEST = 0.3, 1.1  # of what a target can do

Step = Callable[[str], None]


class BenchExtraMissing(Exception):
    """A package of the extra ``bench`` is not installed; the message says how to have it."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What was measured.

    Args:
        points: every target at every rate, the rates rising, the targets as they were named.
        facts: what each target says of itself.
        capacities: requests a second of each target, with 32 in flight; empty where rates were given.
    """

    points: list[Point]
    facts: Mapping[str, Mapping[str, Any]]
    capacities: Mapping[str, float]


def needs(*packages: str) -> None:
    """Raises: BenchExtraMissing."""
    for package in packages:
        if find_spec(package) is None:
            raise BenchExtraMissing(f"{package} is not installed; in a checkout: {_INSTALL}")


def run_load(plan: LoadPlan, pool: Sequence[str], *, on_step: Step) -> Sweep:
    """Start or meet the targets, warm up, and measure in interleaved rounds.

    Raises: BenchExtraMissing, RatesInvalid, LengthsInvalid, ModelError, ServerFailed, ServerRefused, RequestsFailed,
        WorkerFailed.
    """
    needs("aiohttp")
    if plan.rates is not None:
        _check_rates(plan.rates, plan.seconds)
    work = draw_load(plan, pool)
    with ExitStack() as stack:
        targets = open_targets(plan, stack, on_step=on_step)
        client = stack.enter_context(Worker("xpeft_benchmarks.load.rate_client"))
        return _Run(plan, work, targets, client, on_step).sweep()


class _Run:
    def __init__(
        self, plan: LoadPlan, work: LoadWork, targets: Mapping[str, LoadTarget], client: Worker, on_step: Step
    ) -> None:
        self._plan = plan
        self._targets = targets
        self._client = client
        self._on_step = on_step
        tls = {name: str(path) for name, path in plan.tls.given().items()}
        for name, target in targets.items():
            requests, streams = work.requests(target.server), bool(work.new_tokens)
            client.ask(job="load", target=name, url=target.url, requests=requests, streams=streams, tls=tls)

    def sweep(self) -> Sweep:
        for name in self._targets:
            self._warm_up(name)
        capacities: dict[str, float] = {}
        rates = self._plan.rates
        if rates is None:
            capacities = {name: self._capacity(name) for name in self._targets}
            rates = rates_up_to(min(capacities.values()), max(capacities.values()))
            self._on_step(f"rates: {', '.join(f'{rate:g}' for rate in rates)} requests a second")
            _check_rates(rates, self._plan.seconds)
        points = [Point(name, rate) for rate in rates for name in self._targets]
        self._measure(points, rates)
        return Sweep(points, {name: target.facts for name, target in self._targets.items()}, capacities)

    def _measure(self, points: Sequence[Point], rates: Sequence[float]) -> None:
        """In each round the rates in a random order, at each rate one target after the other, in a random order."""
        rng = random.Random(self._plan.seed)
        for number in range(self._plan.rounds):
            for place in rng.sample(range(len(rates)), len(rates)):
                here = [point for point in points if point.rate == rates[place]]
                for point in rng.sample(here, len(here)):
                    stretch = self._at_rate(point, (self._plan.seed, number, place))
                    point.rounds.append(stretch)
                    self._on_step(f"round {number + 1} of {self._plan.rounds}: {_told(point, stretch)}")

    def _at_rate(self, point: Point, seed: tuple[int, ...]) -> Stretch:
        """The same seed is the same requests at the same moments, whatever the target."""
        target, seconds = self._targets[point.target], self._plan.seconds
        first = int(np.random.default_rng(seed).integers(self._plan.texts))
        before = target.counters()
        answer = self._client.ask(
            job="rate", target=point.target, rate=point.rate, seconds=seconds, seed=seed, first=first
        )
        after = target.counters()
        exchanges = _exchanges(answer)
        used = {name: after[name] - before[name] for name in before}
        return Stretch(seconds, exchanges, answer["cpu_seconds"], used, answer["problem"])

    def _warm_up(self, name: str) -> None:
        """Each request once, if there is time for it, so that profiles are where they will be."""
        self._on_step(f"{name}: warming up")
        exchanges, _ = self._at_once(name, self._plan.texts)
        if self._plan.lengths is not None:
            counts = [each.tokens for each in exchanges if each.status == OK]
            self._on_step(f"{name}: texts of {min(counts)} to {max(counts)} tokens, as the server counts them")

    def _capacity(self, name: str) -> float:
        exchanges, seconds = self._at_once(name, None)
        capacity = sum(each.status == OK for each in exchanges) / seconds
        self._on_step(f"{name}: {capacity:.1f} requests a second with {_AT_ONCE} in flight")
        return capacity

    def _at_once(self, name: str, requests: int | None) -> tuple[list[Exchange], float]:
        """Raises: RequestsFailed where another answer than 200 and 429 came."""
        answer = self._client.ask(
            job="once", target=name, concurrency=_AT_ONCE, seconds=self._plan.seconds, requests=requests
        )
        exchanges = _exchanges(answer)
        statuses = Counter(each.status for each in exchanges)
        if not statuses[OK] or statuses.keys() - {OK, _BUSY}:
            raise RequestsFailed(
                f"{name}: {statuses[OK]} of {len(exchanges)} requests were answered with 200: {answer['problem']}"
            )
        return exchanges, answer["seconds"]


def rates_up_to(least: float, most: float) -> tuple[float, ...]:
    """Nine rates at even distances, from 0.3 of what the slowest target can do to 1.1 of what the fastest can."""
    return tuple(float(f"{rate:.3g}") for rate in np.linspace(_LOWEST * least, _HIGHEST * most, _STEPS))


def _check_rates(rates: Sequence[float], seconds: float) -> None:
    if rates[0] * seconds < _FEWEST:
        raise RatesInvalid(
            f"rate {rates[0]:g} for {seconds:g} seconds is {rates[0] * seconds:.3g} requests, too few to tell"
            f" quantiles: at least {_FEWEST} are needed, so {_FEWEST / rates[0]:.0f} seconds or more"
        )


def _exchanges(answer: Mapping[str, Any]) -> list[Exchange]:
    return [Exchange(*each) for each in answer["exchanges"]]


def _told(point: Point, stretch: Stretch) -> str:
    total = stretch.stage("total")
    p50 = f", p50 {1000 * statistics.median(total):.1f} ms" if total else ""
    return f"{point.target}, {point.rate:g} a second: {stretch.answered():.1f} answered{p50}"
