"""A closed loop around an engine in this process: each request in flight is followed by the next one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from xpeft_server.engine.device.times import DeviceTimes
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.errors import EngineError
from xpeft_server.engine.requests import ClassifyRequest

from ..stretches import RequestsFailed
from ..turns import Turn

_MADE: Final = 'xpeft_profile_cache_misses_total{tier="device"}'
_READ: Final = 'xpeft_profile_cache_misses_total{tier="host"}'


class _Moment(NamedTuple):
    """``texts`` were answered until ``at``, when the last answer came; ``device`` is what it had done by then."""

    at: float
    texts: int
    device: DeviceTimes


class ClosedLoop:
    """Sends to one engine, from its event loop.

    Args:
        in_flight: requests at a time.
    """

    def __init__(self, engine: Engine, in_flight: int) -> None:
        self._engine = engine
        self.in_flight = in_flight
        self._answered = 0
        self._last = time.perf_counter()
        self._goal = 0
        self._reached = asyncio.Event()

    async def ask_all(self, requests: Iterable[ClassifyRequest]) -> None:
        """Until each has been answered. Raises: RequestsFailed."""
        shared = iter(requests)
        await asyncio.gather(*(self._ask(shared) for _ in range(self.in_flight)))

    async def turn(self, requests: Iterator[ClassifyRequest], seconds: float, *, ramp: int) -> Turn:
        """Measure for ``seconds`` and until a batch ends, after a ramp of ``ramp`` texts; nothing runs on return.

        Args:
            requests: endless.
        Raises: RequestsFailed.
        """
        try:
            async with asyncio.TaskGroup() as group:
                asking = [group.create_task(self._ask(requests)) for _ in range(self.in_flight)]
                await self._answers(ramp)
                measured = await self._window(seconds)
                for task in asking:
                    task.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        # Waits behind what the cancelled requests left on the device.
        await self._one(next(requests))
        return measured

    async def _window(self, seconds: float) -> Turn:
        begin, misses = self._moment(), self._misses()
        await asyncio.sleep(seconds)
        await self._answers(1)
        end, misses_then = self._moment(), self._misses()
        made, read = (after - before for before, after in zip(misses, misses_then, strict=True))
        return Turn(
            texts=end.texts - begin.texts,
            seconds=end.at - begin.at,
            batches=end.device.batches - begin.device.batches,
            busy_seconds=end.device.busy_seconds - begin.device.busy_seconds,
            host_seconds=end.device.host_seconds - begin.device.host_seconds,
            made=made,
            read=read,
        )

    def _moment(self) -> _Moment:
        return _Moment(self._last, self._answered, self._engine.device_times)

    def _misses(self) -> tuple[int, int]:
        page = self._engine.metrics.render().decode()
        series = dict(line.rpartition(" ")[::2] for line in page.splitlines() if line.startswith("xpeft_profile_cache"))
        return int(float(series[_MADE])), int(float(series[_READ]))

    async def _answers(self, texts: int) -> None:
        """Wait for so many more. All answers of a batch are counted before whoever waits here goes on."""
        self._goal = self._answered + texts
        self._reached.clear()
        await self._reached.wait()

    async def _ask(self, requests: Iterator[ClassifyRequest]) -> None:
        for request in requests:
            await self._one(request)

    async def _one(self, request: ClassifyRequest) -> None:
        try:
            await self._engine.classify(request)
        except EngineError as error:
            raise RequestsFailed(f"the engine refused a request: {error.message}") from None
        self._last = time.perf_counter()
        self._answered += len(request.inputs)
        if self._answered >= self._goal:
            self._reached.set()
