"""The process that sends the requests: closed loop, as many connections as requests in flight, on uvloop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import uvloop

from ..processes.connection import Answer, Connection, ExchangeFailed
from ..processes.workers import answer_jobs


@dataclass(frozen=True, slots=True)
class Drive:
    """One stretch of load.

    Args:
        concurrency: connections; each sends its next request when the last one is answered.
        seconds: no request starts later than this.
        requests: how many are sent at most; None: as many as the time allows.
    """

    concurrency: int
    seconds: float
    requests: int | None = None


@dataclass(slots=True)
class Tally:
    """What came back. Latencies in seconds, from the write of a request to the end of its answer."""

    latencies: list[float] = field(default_factory=list)
    queue: float = 0.0
    inference: float = 0.0
    refused: Counter[int] = field(default_factory=Counter)
    first_refusal: str = ""

    def add(self, answer: Answer, latency: float) -> None:
        if answer.status != 200:
            self.refused[answer.status] += 1
            self.first_refusal = self.first_refusal or answer.body[:500].decode(errors="replace")
            return
        self.latencies.append(latency)
        self.queue += answer.queue
        self.inference += answer.inference


async def drive(host: str, port: int, requests: Sequence[bytes], stretch: Drive) -> dict[str, Any]:
    """Send the requests from the first on, over and over, and tell how it went. Raises: ExchangeFailed, OSError."""
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(Connection, host, port) for _ in range(stretch.concurrency)]
    connections = [connection for _, connection in opened]
    tally = Tally()
    pending = islice(cycle(requests), stretch.requests)
    cpu, start = time.process_time(), time.perf_counter()
    try:
        await asyncio.gather(*(_send(each, pending, start + stretch.seconds, tally) for each in connections))
    finally:
        for connection in connections:
            connection.close()
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    answered = max(1, len(tally.latencies))
    return {
        "answered": len(tally.latencies),
        "seconds": elapsed,
        "latencies": tally.latencies,
        "mean_queue": tally.queue / answered,
        "mean_inference": tally.inference / answered,
        "client_cpu_seconds": cpu,
        "refused": {str(status): count for status, count in tally.refused.items()},
        "first_refusal": tally.first_refusal,
    }


async def _send(connection: Connection, pending: Iterator[bytes], deadline: float, tally: Tally) -> None:
    while (sent := time.perf_counter()) < deadline:
        request = next(pending, None)
        if request is None:
            return
        answer = await connection.exchange(request)
        tally.add(answer, time.perf_counter() - sent)


class LoadClient:
    """Keeps the prepared requests of each target. Jobs: ``load`` once a target, ``drive`` each time."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._targets: dict[str, tuple[str, int, list[bytes]]] = {}

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["job"] == "load":
            requests = [request.encode("utf-8") for request in job["requests"]]
            self._targets[job["target"]] = (job["host"], job["port"], requests)
            return {"loaded": len(requests)}
        host, port, requests = self._targets[job["target"]]
        stretch = Drive(job["concurrency"], job["seconds"], job["requests"])
        return self._runner.run(drive(host, port, requests, stretch))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as on_uvloop:
        answer_jobs(LoadClient(on_uvloop), (ExchangeFailed, OSError))
