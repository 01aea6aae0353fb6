"""``xpeft bench tenants``: very many profiles, a neighbour who asks for too much, and more than a server can do."""

from __future__ import annotations

import asyncio
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..headed_bank import HEAD, write_headed_bank
from ..popularity import Popularity
from ..processes.server_client import http_request
from ..processes.workers import Worker
from ..processes.xpeft_target import XpeftTarget, serve_options, started
from ..registered import register, registered_key
from ..results import Result
from ..rounds import ratio
from ..stretches import drive
from ..texts import sample_texts
from .plan import TenantsPlan
from .results import Flood, Neighbours, due_within, flood_results, neighbour_results

RESIDENT: Final = 32
_FEW: Final = f"{RESIDENT} profiles"
_ALL_AT_ONCE: Final = 32  # requests in flight where the server is to be busy
_WARM_UP: Final = 2.0
_TO_FILL: Final = 3600.0  # seconds at most
_COLD: Final = 100  # requests a round for profiles that nobody asked for before
_FLOOD: Final = 5.0  # times what the server can do
_GREED: Final = 10.0  # times the neighbour's share


def run_tenants(plan: TenantsPlan, pool: Sequence[str], *, on_step: Callable[[str], None]) -> list[Result]:
    """Raises: ModelError, BankError, ProfileStoreError, ServerFailed, ServerRefused, RequestsFailed, WorkerFailed."""
    with (
        _server(plan, on_step) as target,
        Worker("xpeft_benchmarks.serve.load_client") as closed,
        Worker("xpeft_benchmarks.tenants.open_client") as opened,
    ):
        return _Run(plan, pool, target, closed, opened, on_step).results()


@contextmanager
def _server(plan: TenantsPlan, on_step: Callable[[str], None]) -> Iterator[XpeftTarget]:
    with tempfile.TemporaryDirectory(prefix="xpeft-bench-") as name:
        folder = Path(name)
        store = plan.store or f"sqlite:///{folder / 'many.db'}"
        bank = folder / "bank.safetensors"
        geometry = write_headed_bank(plan.plm, plan.bank, bank, seed=plan.seed)
        on_step(f"registering {plan.registered} profiles of {plan.tenants} tenants")
        asyncio.run(
            register(
                store,
                geometry,
                head=HEAD,
                profiles=plan.registered,
                tenants=plan.tenants,
                seed=plan.seed,
                tell=lambda done: on_step(f"{done} registered") if not done % (1 << 18) else None,
            )
        )
        on_step("starting xpeft serve")
        options = serve_options(plan.plm, str(bank), plan.device, plan.dtype, plan.slots, plan.http_processes)
        with started(options, store=store, tenants=plan.tenants) as target:
            yield target


class _Run:
    def __init__(
        self,
        plan: TenantsPlan,
        pool: Sequence[str],
        target: XpeftTarget,
        closed: Worker,
        opened: Worker,
        on_step: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._target = target
        self._closed = closed
        self._opened = opened
        self._on_step = on_step
        self._rng = np.random.default_rng(plan.seed)
        self._texts = sample_texts(pool, plan.texts, self._rng)
        self._next_cold = plan.registered
        self._warm_up = min(_WARM_UP, plan.seconds)

    def results(self) -> list[Result]:
        return [*self._scale(), *self._cold_misses(), *self._neighbour(), *self._flood()]

    def _capacity(self) -> float:
        """Texts a second that the server can do now: a machine's speed may be another one minutes later."""
        answer = self._drive(_FEW, _ALL_AT_ONCE, self._plan.seconds)
        return float(answer["answered"] / answer["seconds"])

    def _scale(self) -> list[Result]:
        """A few profiles against all of them, closed loop."""
        plan = self._plan
        few, many = _FEW, f"zipf:1.1 of {plan.registered} profiles"
        owners = {
            few: Popularity.parse("distinct").draw(plan.texts, min(RESIDENT, plan.registered), self._rng),
            many: Popularity.parse("zipf:1.1").draw(plan.texts, plan.registered, self._rng),
        }
        for name, each in owners.items():
            self._load(name, each.tolist())
        speeds: dict[str, list[float]] = {name: [] for name in owners}
        self._fill_slots()
        for name in owners:
            self._drive(name, _ALL_AT_ONCE, plan.seconds)
        for number in range(plan.rounds):
            for name in sorted(owners, reverse=bool(number % 2)):
                if name == many:
                    drawn = Popularity.parse("zipf:1.1").draw(plan.texts, plan.registered, self._rng)
                    self._load(name, drawn.tolist())
                answer = self._drive(name, _ALL_AT_ONCE, plan.seconds)
                speeds[name].append(answer["answered"] / answer["seconds"])
            self._on_step(f"few profiles and many: round {number + 1} of {plan.rounds}")
        meaning = "POST /v1/classify, one text a request, {} in flight, {}".format(_ALL_AT_ONCE, "{}")
        return [
            Result(few, meaning.format("each profile in turn"), "texts", speeds[few]),
            Result(
                many,
                meaning.format("popular ones more often"),
                "texts",
                speeds[many],
                [ratio(few, speeds[many], speeds[few])],
                self._resident(),
            ),
        ]

    def _fill_slots(self) -> None:
        """With the most popular profiles, each asked for by two batches, as hours of traffic leave them."""
        slots = int(self._target.client.metrics(None)['xpeft_capacity{resource="slots"}'])
        popular = list(range(min(slots, self._plan.registered)))[::-1]
        self._load("popular", popular)
        for _ in range(2):
            self._drive("popular", _ALL_AT_ONCE, _TO_FILL, len(popular))
        self._on_step(f"{len(popular)} popular profiles are in slots")

    def _resident(self) -> dict[str, float]:
        series = self._target.client.metrics(None)
        return {f"resident_{tier}": series[f'xpeft_profiles_resident{{tier="{tier}"}}'] for tier in ("host", "device")}

    def _cold_misses(self) -> list[Result]:
        """One request at a time, for profiles that were never asked for before and for one that is resident."""
        samples: dict[str, list[list[float]]] = {"resident": [], "never seen": []}
        if self._plan.registered < _COLD * self._plan.rounds + RESIDENT:
            return []
        # The same texts as for those that nobody asked for.
        self._load("resident", [place % RESIDENT for place in range(_COLD)])
        self._drive("resident", 1, self._warm_up)
        for number in range(self._plan.rounds):
            self._load("never seen", self._unseen(_COLD))
            for name in sorted(samples, reverse=bool(number % 2)):
                samples[name].append(self._drive(name, 1, 60.0, _COLD)["latencies"])
            self._on_step(f"resident and never seen: round {number + 1} of {self._plan.rounds}")
        p50 = {name: [1000 * statistics.median(each) for each in rounds] for name, rounds in samples.items()}
        added = [cold - warm for cold, warm in zip(p50["never seen"], p50["resident"], strict=True)]
        meaning = "one request at a time, {}"
        return [
            Result(
                "c=1 resident",
                meaning.format(f"{RESIDENT} profiles in turn"),
                "texts",
                [1000 / each for each in p50["resident"]],
                details={"p50_ms": round(statistics.median(p50["resident"]), 3)},
            ),
            Result(
                "c=1 never seen",
                meaning.format("each for a profile that is only in the store"),
                "texts",
                [1000 / each for each in p50["never seen"]],
                details={
                    "p50_ms": round(statistics.median(p50["never seen"]), 3),
                    "p50_added_ms": round(statistics.median(added), 3),
                },
            ),
        ]

    def _unseen(self, count: int) -> list[int]:
        """From the end, which the popular ones are far from."""
        self._next_cold -= count
        return list(range(self._next_cold, self._next_cold + count))

    def _neighbour(self) -> list[Result]:
        """Everybody within their share, against the first tenant with ten times its own."""
        plan = self._plan
        self._load_streams(plan.tenants)
        rounds, shares = Neighbours([], []), []
        for number in range(plan.rounds):
            shares.append(plan.load * self._capacity() / plan.tenants)
            quiet = [shares[-1]] * plan.tenants
            greedy = [_GREED * shares[-1], *quiet[1:]]
            self._arrive([(quiet, self._warm_up)], plan.seed + plan.rounds)
            for rates, kept in ((quiet, rounds.quiet), (greedy, rounds.greedy))[:: 1 if number % 2 else -1]:
                kept.append(self._arrive([(rates, plan.seconds)], plan.seed + number))
            self._on_step(f"a neighbour: round {number + 1} of {plan.rounds}")
        share = statistics.median(shares)
        return neighbour_results(rounds, tenants=plan.tenants, share=share, greed=_GREED, seconds=plan.seconds)

    def _flood(self) -> list[Result]:
        """Five times what the server can do, from all tenants alike, between two quiet times."""
        plan = self._plan
        self._load_streams(plan.tenants)
        before = self._capacity()
        quiet = [plan.load * before / plan.tenants] * plan.tenants
        flood = [_FLOOD * before / plan.tenants] * plan.tenants
        self._on_step(f"a flood of {plan.flood_seconds:g} s")
        phases = [(quiet, plan.seconds), (flood, plan.flood_seconds), (quiet, plan.seconds)]
        whole = self._arrive(phases, plan.seed)
        capacity = (before + self._capacity()) / 2
        bounds = [0.0, plan.seconds, plan.seconds + plan.flood_seconds, math.inf]
        return flood_results(Flood(*(due_within(whole, *each) for each in pairwise(bounds))), capacity, times=_FLOOD)

    def _load(self, name: str, owners: Sequence[int]) -> None:
        requests = self._requests(owners)
        client = self._target.client
        self._closed.ask(job="load", target=name, host=client.host, port=client.port, requests=requests)

    def _drive(self, name: str, concurrency: int, seconds: float, requests: int | None = None) -> dict[str, Any]:
        return drive(self._closed, name, concurrency, seconds, requests)

    def _load_streams(self, tenants: int) -> None:
        """A stream for each tenant, over a few of its profiles."""
        client = self._target.client
        each = max(1, RESIDENT // tenants)
        streams = []
        for tenant in range(tenants):
            mine = [tenant + tenants * number for number in range(each)]
            owners = self._rng.choice([owner for owner in mine if owner < self._plan.registered], 64)
            streams.append(self._requests(owners.tolist()))
        self._opened.ask(job="load", host=client.host, port=client.port, streams=streams)

    def _arrive(self, phases: Sequence[tuple[Sequence[float], float]], seed: int) -> list[dict[str, list[float]]]:
        answer = self._opened.ask(job="run", phases=phases, seed=seed)
        streams: list[dict[str, list[float]]] = answer["streams"]
        return streams

    def _requests(self, owners: Sequence[int]) -> list[str]:
        texts = self._rng.integers(0, len(self._texts), len(owners))
        client = self._target.client
        return [
            http_request(
                "/v1/classify",
                {
                    "profile": registered_key(owner, tenants=self._plan.tenants).name,
                    "input": self._texts[text],
                    "truncate": True,
                },
                host=client.host,
                port=client.port,
                key=self._target.key_of(owner),
            )
            for owner, text in zip(owners, texts, strict=True)
        ]
