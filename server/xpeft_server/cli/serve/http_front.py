"""HTTP in this process: the application over an engine in this process or another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from socket import socket
from typing import Final

from xpeft_profiles import ProfileStore
from xpeft_server.api.app import create_app
from xpeft_server.api.connection.connections import ConnectionLimits
from xpeft_server.api.drain import Drain
from xpeft_server.api.engine_port import EnginePort
from xpeft_server.api.tuning.tuner_port import TunerPort
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import LimitsOfTenants

from .http_parts import HttpParts
from .http_server import HttpServer

CLOSING_SECONDS: Final = 1
"""Seconds that connections get to finish, once no request is waited for."""

# Waiting spans are sent within the time to drain, but not for long; for a moment even if there is none.
_FLUSH_SECONDS: Final = 2.0
_LEAST_FLUSH_SECONDS: Final = 0.25


class HttpFront:
    """A `Front`.

    Args:
        parts: closed with this.
        listening: bound.
        connections: most that may be open.
        shared: other processes listen on the same socket.
    """

    _drained_by = float("inf")  # monotonic seconds

    def __init__(
        self,
        settings: Settings,
        parts: HttpParts,
        *,
        engine: EnginePort,
        store: ProfileStore,
        tuner: TunerPort,
        tenants: LimitsOfTenants,
        metrics: Metrics,
        listening: socket,
        connections: int,
        shared: bool = False,
    ) -> None:
        self._drain_seconds = settings.drain_seconds
        self._parts = parts
        self._listening = listening
        self._drain = Drain()
        app = create_app(
            settings,
            engine=engine,
            store=store,
            tuner=tuner,
            keys=parts.keys,
            tenants=tenants,
            metrics=metrics,
            audit=parts.audit,
            drain=self._drain,
            spans=None if parts.tracing is None else parts.tracing.spans,
        )
        self._http = HttpServer(
            app,
            tls=parts.tls,
            limits=ConnectionLimits(
                most=connections, idle_seconds=settings.idle_seconds, send_seconds=settings.send_seconds
            ),
            metrics=metrics,
            closing_seconds=CLOSING_SECONDS,
            access_log=settings.access_log,
            shared=shared,
        )

    async def serve(self, announce: Callable[[], None]) -> None:
        """Raises: FrontFailed if another program, which had bound the address too, listens by now."""
        watching = self._parts.watch()
        self._http.announce = announce
        try:
            await self._http.serve(sockets=[self._listening])
        finally:
            for each in watching:
                each.cancel()
            left = self._drained_by - time.monotonic()
            await asyncio.to_thread(self._parts.close, max(_LEAST_FLUSH_SECONDS, min(left, _FLUSH_SECONDS)))

    def begin_drain(self) -> None:
        self._drained_by = time.monotonic() + self._drain_seconds
        self._drain.begin()

    async def wait_until_empty(self) -> None:
        await self._drain.wait_until_empty()

    def close(self) -> None:
        self._http.should_exit = True
