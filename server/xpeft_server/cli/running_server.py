"""A server that runs: one event loop, the engine beside it, and the way out."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Final

import typer
import uvloop

from xpeft_profiles import ProfileStore
from xpeft_server.api.app import create_app
from xpeft_server.api.audit_log import AuditLog
from xpeft_server.api.auth import Keys
from xpeft_server.api.connections import ConnectionLimits
from xpeft_server.api.drain import Drain
from xpeft_server.api.key_ring import KeyRing
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import LimitsFile, LimitsOfTenants

from .assembly import build_engine
from .http_server import HttpServer
from .listening import address_of
from .tls import ServerTls
from .tracing import Tracing
from .tuner_assembly import build_tuner

log = logging.getLogger(__name__)

# Of the time to drain, so much is kept for telling who still waits and for closing: a second, or a quarter if less.
_CLOSING_SECONDS: Final = 1
_CLOSING_SHARE: Final = 0.25
# The store is told of interrupted tuning jobs even where there is no time to drain.
_TELLING_SECONDS: Final = 0.5
# Spans that wait are sent while there is time to drain, but not for long, and for a moment even where there is none.
_FLUSH_SECONDS: Final = 2.0
_LEAST_FLUSH_SECONDS: Final = 0.25
_SWITCH_SECONDS: Final = 0.001


class RunningServer:
    """Everything between two signals. ``run`` gives the exit code: 0 when asked to stop, 1 if the engine died.

    Args:
        connections: how many may be open.
        environ: what processes that it starts get, but for what was meant for the server itself.
    Raises: SettingsInvalid, ModelError or BankError if the engine cannot be built.
    """

    _died = False
    _drained_by = float("inf")  # monotonic seconds

    def __init__(
        self,
        settings: Settings,
        *,
        store: ProfileStore,
        keys: Keys,
        tenants: LimitsOfTenants,
        audit: AuditLog,
        metrics: Metrics,
        tracing: Tracing | None,
        socket: socket.socket,
        connections: int,
        tls: ServerTls | None,
        environ: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._store = store
        self._keys = keys
        self._audit = audit
        self._tracing = tracing
        self._socket = socket
        self._scheme = "http" if tls is None else "https"
        self._drain = Drain()
        self._stop = asyncio.Event()
        self._watched = [each for each in (keys, tenants, tls) if isinstance(each, KeyRing | LimitsFile | ServerTls)]
        self._engine: Engine = build_engine(settings, store, metrics, tenants=tenants, on_death=self._engine_died)
        self._tuner = build_tuner(settings, self._engine, store, metrics, tenants=tenants, environ=environ)
        app = create_app(
            settings,
            engine=self._engine,
            store=store,
            tuner=self._tuner,
            keys=keys,
            tenants=tenants,
            metrics=metrics,
            audit=audit,
            drain=self._drain,
            spans=None if tracing is None else tracing.spans,
        )
        self._http = HttpServer(
            app,
            tls=tls,
            limits=ConnectionLimits(
                most=connections, idle_seconds=settings.idle_seconds, send_seconds=settings.send_seconds
            ),
            metrics=metrics,
            closing_seconds=_CLOSING_SECONDS,
            announce=self._announce,
        )

    def run(self) -> int:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())
        return 1 if self._died else 0

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        watching = [loop.create_task(each.watch()) for each in self._watched]
        try:
            await self._engine.start()
            await self._tuner.start()
            # What is there by now stays: the collector need not walk through a model and its libraries again and again.
            gc.collect()
            gc.freeze()
            # Where both want to go on, the device's thread waits no longer for the loop's Python than this.
            sys.setswitchinterval(_SWITCH_SECONDS)
            serving = loop.create_task(self._http.serve(sockets=[self._socket]))
            serving.add_done_callback(lambda _: self._stop.set())
            await self._stop.wait()
            await self._leave()
            await serving
        finally:
            for each in watching:
                each.cancel()
            await self._tuner.close()
            await self._store.close()
            self._audit.close()
            if self._tracing is not None:
                left = self._drained_by - time.monotonic()
                await asyncio.to_thread(self._tracing.close, max(_LEAST_FLUSH_SECONDS, min(left, _FLUSH_SECONDS)))

    def _signalled(self, number: int) -> None:
        log.info("%s: stopping; another one stops at once", signal.Signals(number).name)
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        self._stop.set()

    def _engine_died(self) -> None:
        log.critical(
            "the engine cannot go on: this process ends with exit code 1, to be started again by its supervisor"
        )
        self._died = True
        self._stop.set()

    async def _leave(self) -> None:
        """Let what is inside finish, tell whoever still waits, close."""
        seconds = self._settings.drain_seconds
        self._drained_by = time.monotonic() + seconds
        _end_by_force_after(seconds + _CLOSING_SECONDS)
        self._drain.begin()
        grace = seconds - min(_CLOSING_SECONDS, seconds * _CLOSING_SHARE)
        # Who follows a tuning job is inside until it is over, and this ends them all.
        ending = [asyncio.ensure_future(self._tuner.close()), asyncio.ensure_future(self._drain.wait_until_empty())]
        await asyncio.wait(ending, timeout=max(grace, _TELLING_SECONDS))
        await self._engine.close()
        self._http.should_exit = True

    def _announce(self) -> None:
        settings = self._settings
        typer.echo(
            f"xpeft serves at {address_of(self._socket, self._scheme)} · PLM {settings.plm} · bank {settings.bank}"
            f" · store {settings.store_shown} · keys {'on' if self._keys.required else 'off'}"
        )


def _end_by_force_after(seconds: float) -> None:
    def end() -> None:
        log.critical("still not stopped %.1f s after the signal", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
