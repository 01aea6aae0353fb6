"""The process that sends requests at a rate, over aiohttp and uvloop, as the clients of a deployment would."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson
import uvloop

from xpeft_server.client_tls import NO_FILES, ClientTls

from ..arrivals import arrivals_at
from ..processes.workers import answer_jobs
from .event_reader import EventReader
from .exchange import OK, REST, TOTAL, Exchange
from .server_timing import server_stages

_DEADLINE: Final = 60.0  # seconds that the last answers may take after the last request
_LEAD: Final = 0.05  # seconds before the first request can be due
_IDLE: Final = 3.0  # seconds; uvicorn closes a connection after 5, and a request may just be on its way then
_BROKEN: Final = (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError, asyncio.CancelledError)

Request = tuple[bytes, dict[str, str]]
"""Body and headers."""


class RateClient:
    """Sends the requests of one target, from the first on, over and over.

    Args:
        streams: answers are events (see `EventReader`); False: one JSON document with ``usage.prompt_tokens``.
        tls: of use for https.
    Attributes:
        problem: what the first answer was that was not 200, or why there was none.
    """

    def __init__(self, url: str, requests: Sequence[Request], *, streams: bool, tls: ClientTls = NO_FILES) -> None:
        self._url = url
        self._requests = requests
        self._streams = streams
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self.problem = ""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """As many connections as it takes, for one stretch."""
        tls = self._tls.context() if self._url.startswith("https:") else True
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE, ssl=tls)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_DEADLINE)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar) as session:
            self._session = session
            yield

    async def at_rate(self, rate: float, seconds: float, seed: Sequence[int], first: int) -> list[Exchange]:
        """Poisson arrivals, each sent when it is due, in the order of their ends.

        Args:
            rate: requests a second.
            first: the request to begin with.
        """
        done: list[Exchange] = []
        tasks: list[asyncio.Task[None]] = []
        start = time.perf_counter() + _LEAD
        for number, moment in enumerate(arrivals_at(rate, seconds, seed), first):
            # uvloop's timers count milliseconds: half of one too early is possible, and counts as what it is.
            await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
            request = self._requests[number % len(self._requests)]
            tasks.append(asyncio.create_task(self._send(request, start + moment, done)))
        if tasks:
            await asyncio.wait(tasks, timeout=_DEADLINE)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        return done

    async def at_once(self, concurrency: int, seconds: float, requests: int | None) -> list[Exchange]:
        """So many in flight, each followed by the next as soon as it is answered, until either limit is reached."""
        done: list[Exchange] = []
        pending = islice(cycle(self._requests), requests)
        end = time.perf_counter() + seconds

        async def keep_sending() -> None:
            while (now := time.perf_counter()) < end and (request := next(pending, None)) is not None:
                await self._send(request, now, done)

        await asyncio.gather(*(keep_sending() for _ in range(concurrency)))
        return done

    async def _send(self, request: Request, due: float, done: list[Exchange]) -> None:
        sent = time.perf_counter()
        status, tokens = 0, 0
        stages: dict[str, float] = {}
        try:
            status, tokens, stages = await self._exchange(request, min(due, sent))
        except _BROKEN as error:
            self._note(f"{type(error).__name__}: {error}")
        done.append(Exchange(max(0.0, sent - due), status, tokens, stages))

    async def _exchange(self, request: Request, begin: float) -> tuple[int, int, dict[str, float]]:
        """Status, tokens, stages. Raises: one of ``_BROKEN``."""
        assert self._session is not None
        body, headers = request
        async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
            if answer.status != OK:
                self._note(f"{answer.status} {(await answer.text())[:500]}")
                return answer.status, 0, {}
            stages = server_stages(answer.headers)
            if self._streams:
                # Its time is over when the stream begins.
                stages.pop("server", None)
                events = await _read_events(answer)
                stages |= {**events.stages(begin), TOTAL: time.perf_counter() - begin}
                return OK, events.prompt_tokens, stages
            document = await answer.read()
            stages[TOTAL] = time.perf_counter() - begin
            if "server" in stages:
                stages[REST] = stages[TOTAL] - stages["server"]
            return OK, orjson.loads(document)["usage"]["prompt_tokens"], stages

    def _note(self, problem: str) -> None:
        self.problem = self.problem or problem


async def _read_events(answer: aiohttp.ClientResponse) -> EventReader:
    """Raises: ClientPayloadError if it ends before it is whole."""
    events = EventReader()
    async for data in answer.content.iter_any():
        events.feed(data, time.perf_counter())
    if not events.is_whole:
        raise aiohttp.ClientPayloadError("the stream ended before its last event")
    return events


class RateJobs:
    """Jobs: ``load`` once a target, then ``rate`` and ``once`` as often as is liked."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._clients: dict[str, RateClient] = {}

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["job"] == "load":
            requests = [(body.encode(), headers) for body, headers in job["requests"]]
            tls = ClientTls(**{name: Path(path) for name, path in job["tls"].items()})
            self._clients[job["target"]] = RateClient(job["url"], requests, streams=job["streams"], tls=tls)
            return {"loaded": len(requests)}
        return self._runner.run(self._run(self._clients[job["target"]], job))

    async def _run(self, client: RateClient, job: dict[str, Any]) -> dict[str, Any]:
        """``seconds``: from the first request to the last answer."""
        client.problem = ""
        gc.collect()
        async with client.connected():
            cpu, start = time.process_time(), time.perf_counter()
            if job["job"] == "rate":
                done = await client.at_rate(job["rate"], job["seconds"], job["seed"], job["first"])
            else:
                done = await client.at_once(job["concurrency"], job["seconds"], job["requests"])
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"exchanges": done, "seconds": seconds, "cpu_seconds": cpu, "problem": client.problem}


def allow_connections() -> None:
    """As many open files as this process may have: beyond what a server can do, a connection for each who waits."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    allow_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as on_uvloop:
        answer_jobs(RateJobs(on_uvloop), ())
