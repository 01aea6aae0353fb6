"""The process that sends requests when they are due, whether or not earlier ones were answered: an open loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from ..arrivals import Phase, arrivals
from ..processes.connection import Connection, ExchangeFailed
from ..processes.workers import answer_jobs

_DEADLINE = 60.0
"""Seconds that the last answers may take after the last request; later ones count as unanswered."""


@dataclass(slots=True)
class Stream:
    """What came back for one sender's requests, in the order of the answers.

    Args:
        due: seconds from the start when each was to be sent; latencies, in seconds, count from then.
        statuses: of HTTP; 0 where no answer came.
    """

    due: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def add(self, due: float, latency: float, status: int) -> None:
        self.due.append(due)
        self.latencies.append(latency)
        self.statuses.append(status)


class OpenLoop:
    """Sends to one server over as many connections as it takes."""

    def __init__(self, host: str, port: int, streams: Sequence[Sequence[bytes]]) -> None:
        self._address = host, port
        self._streams = streams
        self._idle: list[Connection] = []
        self._sent: list[int] = []

    async def run(self, phases: Sequence[Phase], seed: int) -> list[Stream]:
        """Each stream's requests from its first one on. Raises: OSError if the server cannot be reached."""
        self._sent = [0] * len(self._streams)
        tallies = [Stream() for _ in self._streams]
        loop = asyncio.get_running_loop()
        start = loop.time()
        pending: set[asyncio.Task[None]] = set()
        for due, stream in arrivals(phases, seed):
            if (left := start + due - loop.time()) > 0:
                await asyncio.sleep(left)
            task = loop.create_task(self._send(stream, start, due, tallies[stream]))
            pending.add(task)
            task.add_done_callback(pending.discard)
        if pending:
            await asyncio.wait(pending, timeout=_DEADLINE)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending)
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        return tallies

    async def _send(self, stream: int, start: float, due: float, tally: Stream) -> None:
        loop = asyncio.get_running_loop()
        requests = self._streams[stream]
        request = requests[self._sent[stream] % len(requests)]
        self._sent[stream] += 1
        status = 0
        try:
            connection = await self._connection()
            status = (await connection.exchange(request)).status
            self._idle.append(connection)
        except (ExchangeFailed, asyncio.CancelledError):
            pass
        tally.add(due, loop.time() - start - due, status)

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(Connection, *self._address)
        return connection


class OpenClient:
    """Jobs: ``load`` the prepared requests of each stream, then ``run`` phases of rates and seconds."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._loop: OpenLoop | None = None

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["job"] == "load":
            streams = [[request.encode() for request in stream] for stream in job["streams"]]
            self._loop = OpenLoop(job["host"], job["port"], streams)
            return {"loaded": sum(map(len, streams))}
        assert self._loop is not None
        tallies = self._runner.run(self._loop.run([Phase(*each) for each in job["phases"]], job["seed"]))
        return {
            "streams": [
                {"due": tally.due, "latencies": tally.latencies, "statuses": tally.statuses} for tally in tallies
            ]
        }


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as on_uvloop:
        answer_jobs(OpenClient(on_uvloop), (OSError,))
