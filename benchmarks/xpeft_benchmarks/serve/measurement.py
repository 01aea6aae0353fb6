"""``xpeft bench serve``: what HTTP, queue and batching cost over the engine alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..popularity import Popularity
from ..processes.server_client import ServerClient, ServerRefused
from ..processes.server_process import ServerProcess
from ..processes.workers import Worker
from ..processes.xpeft_target import XpeftTarget, met_at, serve_options, started
from ..results import Result
from ..rounds import interleaved
from ..stretches import (
    Counters,
    EngineStretch,
    LoadStretch,
    Sample,
    Stretch,
    metrics_can_be_read,
    resident_profiles,
    server_counters,
)
from ..texts import sample_texts
from .infinity_target import infinity_process, infinity_program, infinity_requests
from .results import ENGINE, HTTP, INFINITY, results_of

_WARM_UP_SECONDS = 2.0
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServePlan:
    """What to measure.

    Args:
        store: None for a temporary SQLite file.
        url: a server that runs already, asked with ``api_key`` as one tenant; None: one is started.
        concurrencies: requests in flight; the engine is measured in batches of the same sizes.
        seconds, requests: length of a stretch; it ends with whichever comes first.
        slots: the server's; None leaves its default.
        infinity_python: interpreter of the environment that has infinity_emb; None leaves it out.
    """

    plm: str
    bank: str
    device: str
    dtype: str
    profiles: int
    tenants: int
    popularity: Popularity
    concurrencies: tuple[int, ...]
    seconds: float
    requests: int | None
    rounds: int
    texts: int
    store: str | None = None
    url: str | None = None
    api_key: str | None = None
    slots: int | None = None
    http_processes: int = 0
    infinity_python: Path | None = None
    seed: int = 0

    def settings(self) -> dict[str, object]:
        """Without the key."""
        plain = {name: value for name, value in asdict(self).items() if name not in ("api_key", "infinity_python")}
        return {**plain, "popularity": str(self.popularity), "infinity": self.infinity_python is not None}


class Work(NamedTuple):
    """Texts, and the profile of each."""

    texts: list[str]
    owners: list[int]


def run_serve(plan: ServePlan, pool: Sequence[str], *, graph_tokens: int, on_step: Step) -> list[Result]:
    """Start everything, warm up, measure in interleaved rounds, stop everything.

    Args:
        graph_tokens: of the engine alone on a GPU, as the server has it.
    Raises: ServerFailed, ServerRefused, RequestsFailed, WorkerFailed.
    """
    rng = np.random.default_rng(plan.seed)
    texts = sample_texts(pool, plan.texts, rng)
    work = Work(texts, plan.popularity.draw(plan.texts, plan.profiles, rng).tolist())
    with _stage(plan, work, graph_tokens, on_step) as stage:
        samples = _measure(plan, stage.stretches, on_step)
        return results_of(stage.stretches, samples, facts=stage.facts())


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that runs, by variant; ``metrics`` is None where the server's cannot be read."""

    stretches: Mapping[str, Stretch]
    processes: Mapping[str, ServerProcess]
    metrics: ServerClient | None
    mean_tokens: float

    def facts(self) -> dict[str, dict[str, float]]:
        """First word of variants' names → what their server has needed until now."""
        found: dict[str, dict[str, float]] = {ENGINE: {"mean_tokens": round(self.mean_tokens, 1)}, HTTP: {}}
        for name, process in self.processes.items():
            found[name] = {
                "start_seconds": round(process.start_seconds, 2),
                "rss_mb": round(process.rss_bytes() / 1e6),
                "peak_rss_mb": round(process.peak_rss_bytes() / 1e6),
            }
        found[HTTP] |= resident_profiles(self.metrics)
        return found


@contextmanager
def _stage(plan: ServePlan, work: Work, graph_tokens: int, on_step: Step) -> Iterator[Stage]:
    infinity = None if plan.infinity_python is None else infinity_program(plan.infinity_python)
    with ExitStack() as stack:
        on_step("starting xpeft serve" if plan.url is None else f"asking {plan.url}")
        target = stack.enter_context(_xpeft(plan))
        on_step(f"loading {plan.plm} in {plan.dtype} on {plan.device}: the engine alone")
        engine = stack.enter_context(Worker("xpeft_benchmarks.engine.worker"))
        opened = engine.ask(
            job="open",
            texts=work.texts,
            owners=work.owners,
            graph_tokens=graph_tokens,
            **{name: getattr(plan, name) for name in ("plm", "bank", "device", "dtype", "profiles", "seed")},
        )
        on_step(f"uploading {plan.profiles} profiles of {len(target.keys)} tenants")
        target.register(plan.profiles, seed=plan.seed, bank=opened["bank"], dtype=plan.dtype)
        client = stack.enter_context(Worker("xpeft_benchmarks.serve.load_client"))
        metrics = target.client if metrics_can_be_read(target.client) else None
        if metrics is None:
            on_step("the server's /metrics needs an operator's key: what only it tells is not reported")
        stretches = _http_stretches(plan, target, client, work, server_counters(metrics, target.process))
        stretches |= {f"{ENGINE} batch={size}": EngineStretch(engine, size) for size in plan.concurrencies}
        processes = {} if target.process is None else {HTTP: target.process}
        if infinity is not None:
            on_step("starting infinity")
            process = infinity_process(
                infinity, opened["folder"], device=plan.device, dtype=plan.dtype, batch=max(plan.concurrencies)
            )
            processes[INFINITY] = stack.enter_context(process)
            stretches |= _infinity_stretches(plan, process, client, work)
        yield Stage(stretches, processes, metrics, opened["mean_tokens"])


def _xpeft(plan: ServePlan) -> AbstractContextManager[XpeftTarget]:
    if plan.url is not None:
        target = met_at(plan.url, plan.api_key)
        if target.client.tls is not None:
            raise ServerRefused(f"url {plan.url!r}: bench serve speaks plain HTTP only, bench load speaks https too")
        return nullcontext(target)
    options = serve_options(plan.plm, plan.bank, plan.device, plan.dtype, plan.slots, plan.http_processes)
    return started(options, store=plan.store, tenants=plan.tenants)


def _http_stretches(
    plan: ServePlan, target: XpeftTarget, client: Worker, work: Work, counters: Counters
) -> dict[str, Stretch]:
    requests = target.requests(work.texts, work.owners)
    client.ask(job="load", target=HTTP, host=target.client.host, port=target.client.port, requests=requests)
    meaning = "POST /v1/classify, one text a request, {} in flight, every answer 200"
    return {
        f"{HTTP} c={size}": LoadStretch(client, HTTP, size, meaning.format(size), counters)
        for size in plan.concurrencies
    }


def _infinity_stretches(plan: ServePlan, process: ServerProcess, client: Worker, work: Work) -> dict[str, Stretch]:
    requests = infinity_requests(work.texts, process)
    client.ask(job="load", target=INFINITY, host=process.host, port=process.port, requests=requests)
    counters = server_counters(None, process)
    meaning = "infinity_emb, POST /embeddings (no adapters, no head), one text a request, {} in flight"
    return {
        f"{INFINITY} c={size}": LoadStretch(client, INFINITY, size, meaning.format(size), counters)
        for size in plan.concurrencies
    }


def _measure(plan: ServePlan, stretches: Mapping[str, Stretch], on_step: Step) -> dict[str, list[Sample]]:
    on_step(f"warming up {len(stretches)} variants")
    for stretch in stretches.values():
        stretch.run(min(plan.seconds, _WARM_UP_SECONDS), plan.requests)
    samples: dict[str, list[Sample]] = {name: [] for name in stretches}
    for name in interleaved(
        stretches, plan.rounds, plan.seed, on_round=lambda number: on_step(f"round {number} of {plan.rounds}")
    ):
        samples[name].append(stretches[name].run(plan.seconds, plan.requests))
    return samples
