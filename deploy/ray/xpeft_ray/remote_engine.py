"""An engine, as the API has it, over replicas in other processes that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, TypeVar

from xpeft_profiles import BankGeometry
from xpeft_server.engine.errors import Unavailable
from xpeft_server.engine.profiles.store_watch import StoreWatch
from xpeft_server.engine.requests import (
    ClassifyAnswer,
    ClassifyRequest,
    EngineInfo,
    EngineStatus,
    GenerateRequest,
    Journey,
    News,
)
from xpeft_server.remote.answering import heard
from xpeft_server.remote.error_value import ErrorValue
from xpeft_server.remote.trail import Follower

from .replicas import EngineReport, ReplicaLost, Replicas

logger = logging.getLogger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two rounds of reports."""

PATIENCE: Final = 10.0
"""Seconds without any answer of a replica after which requests fail. A new replica takes about as long to start."""

TRIES: Final = 3
"""Replicas that a request may lose before it fails."""

T = TypeVar("T")


class RemoteEngine:
    """An `EnginePort` over replicas. A request whose replica goes away before it gave any answer is sent to another.

    Args:
        watch: of the store that the ingress itself uses.
        on_bank: called when the replicas serve another bank than before.
        patience: see `PATIENCE`.
    """

    def __init__(
        self,
        replicas: Replicas,
        *,
        watch: StoreWatch,
        on_bank: Callable[[], None] = lambda: None,
        interval: float = INTERVAL,
        patience: float = PATIENCE,
    ) -> None:
        self._replicas = replicas
        self._watch = watch
        self._on_bank = on_bank
        self._interval = interval
        self._patience = patience
        self._known: EngineReport | None = None
        self._reports: Sequence[EngineReport] = ()
        self._heard = time.monotonic()
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait for the first replica, however long it takes to load its model."""
        while self._known is None:
            self._hear(await self._replicas.reports())
            if self._known is None:
                await asyncio.sleep(self._interval)
        self._task = asyncio.create_task(self._listen(), name="engine-reports")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def info(self) -> EngineInfo:
        return self._report().info

    @property
    def geometry(self) -> BankGeometry:
        return self._report().geometry

    @property
    def reports(self) -> Sequence[EngineReport]:
        """Of the last round."""
        return self._reports

    def status(self) -> EngineStatus:
        """Ready when a replica is, and the store answers here."""
        checks = {"engine": self._engine_check(), "store": self._watch.problem or "ok"}
        return EngineStatus(ready=set(checks.values()) == {"ok"}, checks=checks)

    def check_room(self, tenant: str) -> None:
        """Only a replica knows how full its queue is, so nobody is refused here for that."""
        del tenant
        self._check_there()

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Raises: EngineError; Unavailable if replicas went away one after the other."""
        for _ in range(TRIES):
            self._check_there()
            sent, follower = replace(request, journey=Journey(request.journey.id)), Follower(request.journey)
            try:
                outcome = await self._unless_gone(self._replicas.classify(sent))
            except ReplicaLost as error:
                logger.warning("a request to classify is sent again: %s", error)
                continue
            follower.follow(outcome.trail)
            self._heard = time.monotonic()
            if isinstance(outcome.result, ErrorValue):
                raise outcome.result.error()
            return outcome.result
        raise _lost()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[News, None]:
        """Raises: EngineError; Unavailable if the replica went away after its first news."""
        for _ in range(TRIES):
            self._check_there()
            begun, sent = False, replace(request, journey=Journey(request.journey.id))
            async with aclosing(heard(self._replicas.generate(sent), request.journey)) as news:
                while True:
                    try:
                        item = await self._unless_gone(_next(news))
                    except ReplicaLost as error:
                        if begun:
                            raise Unavailable("the replica that was writing this answer went away") from error
                        logger.warning("a request to generate is sent again: %s", error)
                        break
                    if item is None:
                        return
                    self._heard = time.monotonic()
                    begun = True
                    yield item
        raise _lost()

    def _report(self) -> EngineReport:
        if self._known is None:
            raise Unavailable("no engine replica has started yet")
        return self._known

    def _engine_check(self) -> str:
        if not self._reports:
            return "no replica answers"
        checks = [report.status for report in self._reports]
        if any(status.ready for status in checks):
            return "ok"
        return "; ".join(f"{part}: {said}" for part, said in checks[0].checks.items() if said != "ok")

    def _check_there(self) -> None:
        if self._gone.is_set():
            raise _silent(self._patience)

    async def _listen(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                reports = await self._replicas.reports()
            except Exception:
                logger.exception("the replicas could not be asked for reports")
                reports = []
            self._hear(reports)

    def _hear(self, reports: Sequence[EngineReport]) -> None:
        self._reports = reports
        if not reports:
            if time.monotonic() - self._heard > self._patience:
                self._gone.set()
            return
        self._heard = time.monotonic()
        self._gone.clear()
        before = self._known
        same = [each for each in reports if before is not None and each.geometry == before.geometry]
        # While replicas are replaced by ones with another bank, the old bank counts until its last replica is gone.
        self._known = (same or reports)[0]
        if before is not None and not same:
            self._on_bank()

    async def _unless_gone(self, call: Coroutine[Any, Any, T]) -> T:
        """The call's result. Raises: Unavailable once the replicas have been silent for too long."""
        working = asyncio.ensure_future(call)
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise _silent(self._patience)
        finally:
            gone.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait([working])


async def _next(news: AsyncGenerator[T, None]) -> T | None:
    """None when there is no more."""
    try:
        return await anext(news)
    except StopAsyncIteration:
        return None


def _silent(seconds: float) -> Unavailable:
    return Unavailable(f"no engine replica has answered for {seconds:g} s", retry_after=5.0)


def _lost() -> Unavailable:
    return Unavailable(f"{TRIES} replicas went away, one after the other, before they could answer", retry_after=5.0)
