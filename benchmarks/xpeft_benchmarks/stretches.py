"""One stretch of a round: load on a server, or the engine's own work, for the same time on the same texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .processes.server_client import ServerClient, ServerRefused
from .processes.server_process import ServerProcess
from .processes.workers import Worker

Counters = Callable[[], dict[str, float]]
"""What a server has used and done so far, by name."""


class RequestsFailed(Exception):
    """A server answered a request of the load with something else than 200."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one stretch gave.

    Args:
        answered: texts.
        seconds: from the first request to the last answer.
        latencies: seconds, of each request or batch.
        totals: sums over the stretch by name; every sample of a variant has the same names.
    """

    answered: int
    seconds: float
    latencies: list[float]
    totals: Mapping[str, float]

    @property
    def speed(self) -> float:
        return self.answered / self.seconds


class Stretch(Protocol):
    """``concurrency`` is the requests in flight, or the texts of a batch."""

    concurrency: int
    meaning: str

    def run(self, seconds: float, requests: int | None) -> Sample: ...


class EngineStretch:
    """The Classifier in a process of its own, in full batches, the servers idle."""

    def __init__(self, worker: Worker, batch: int) -> None:
        self._worker = worker
        self.concurrency = batch
        self.meaning = (
            f"the Classifier in process, batches of {batch}, on the same texts and profiles, already tokenised"
        )

    def run(self, seconds: float, requests: int | None) -> Sample:
        """Raises: WorkerFailed."""
        answer = self._worker.ask(job="run", batch=self.concurrency, seconds=seconds, requests=requests)
        return Sample(answer["answered"], answer["seconds"], answer["latencies"], {})


class LoadStretch:
    """Requests from the load client to one of its targets.

    Args:
        counters: what the server has used and done so far, by name; read before and after.
    """

    def __init__(self, client: Worker, target: str, concurrency: int, meaning: str, counters: Counters) -> None:
        self._client = client
        self._target = target
        self._counters = counters
        self.concurrency = concurrency
        self.meaning = meaning

    def run(self, seconds: float, requests: int | None) -> Sample:
        """Raises: RequestsFailed, WorkerFailed."""
        before = self._counters()
        answer = drive(self._client, self._target, self.concurrency, seconds, requests)
        after = self._counters()
        return Sample(answer["answered"], answer["seconds"], answer["latencies"], _totals(answer, before, after))


def drive(client: Worker, target: str, concurrency: int, seconds: float, requests: int | None) -> dict[str, Any]:
    """Have the load client send to one of its targets. Raises: RequestsFailed, WorkerFailed."""
    answer = client.ask(job="drive", target=target, concurrency=concurrency, seconds=seconds, requests=requests)
    if answer["refused"] or not answer["answered"]:
        raise RequestsFailed(
            f"{target} answered {answer['answered']} requests and refused {answer['refused']}"
            f" (status: requests), first: {answer['first_refusal']}"
        )
    return answer


def server_counters(client: ServerClient | None, process: ServerProcess | None) -> Counters:
    """Reads batches from /metrics and CPU time from the process, each where it can be had.

    Args:
        client: None for a server whose metrics nobody reads.
        process: None for a server that is not ours.
    """

    def read() -> dict[str, float]:
        counters: dict[str, float] = {}
        if client is not None:
            series = client.metrics(None)
            counters["batches"] = series["xpeft_batch_size_count"]
            counters["batch_texts"] = series["xpeft_batch_size_sum"]
        if process is not None:
            counters["server_cpu_seconds"] = process.cpu_seconds()
        return counters

    return read


def resident_profiles(client: ServerClient | None) -> dict[str, float]:
    """How many profiles are in slots, under the name of a detail; empty where nobody reads the metrics."""
    return (
        {} if client is None else {"resident_profiles": client.metrics(None)['xpeft_profiles_resident{tier="device"}']}
    )


def metrics_can_be_read(client: ServerClient) -> bool:
    try:
        client.metrics(None)
    except ServerRefused:
        return False
    return True


def _totals(answer: dict[str, Any], before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {
        "queue_seconds": answer["mean_queue"] * answer["answered"],
        "inference_seconds": answer["mean_inference"] * answer["answered"],
        "client_cpu_seconds": answer["client_cpu_seconds"],
        **{name: after[name] - before[name] for name in before},
    }
