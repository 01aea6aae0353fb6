"""A server that runs: one event loop, the engine beside it, and the way out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Final

import typer
import uvicorn
import uvloop
from fastapi import FastAPI

from xpeft_profiles import ProfileStore
from xpeft_server.api.app import create_app
from xpeft_server.api.auth import Keys
from xpeft_server.api.drain import Drain
from xpeft_server.api.key_ring import KeyRing
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings

from .assembly import build_engine
from .listening import address_of
from .tuner_assembly import build_tuner

log = logging.getLogger(__name__)

# Of the time to drain, so much is kept for telling who still waits and for closing: a second, or a quarter if less.
_CLOSING_SECONDS: Final = 1
_CLOSING_SHARE: Final = 0.25
# The store is told of interrupted tuning jobs even where there is no time to drain.
_TELLING_SECONDS: Final = 0.5


class RunningServer:
    """Everything between two signals. ``run`` gives the exit code: 0 when asked to stop, 1 if the engine died.

    Args:
        environ: what processes that it starts get, but for what was meant for the server itself.
    Raises: SettingsInvalid, ModelError or BankError if the engine cannot be built.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: ProfileStore,
        keys: Keys,
        socket: socket.socket,
        environ: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._store = store
        self._keys = keys
        self._socket = socket
        self._drain = Drain()
        self._stop = asyncio.Event()
        self._died = False
        metrics = Metrics(top_profiles=settings.metrics_top_profiles)
        self._engine: Engine = build_engine(settings, store, metrics, on_death=self._engine_died)
        self._tuner = build_tuner(settings, self._engine, store, metrics, environ=environ)
        app = create_app(
            settings,
            engine=self._engine,
            store=store,
            tuner=self._tuner,
            keys=keys,
            metrics=metrics,
            drain=self._drain,
        )
        self._http = _Http(app, announce=self._announce)

    def run(self) -> int:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())
        return 1 if self._died else 0

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        watching = loop.create_task(self._keys.watch()) if isinstance(self._keys, KeyRing) else None
        try:
            await self._engine.start()
            await self._tuner.start()
            serving = loop.create_task(self._http.serve(sockets=[self._socket]))
            serving.add_done_callback(lambda _: self._stop.set())
            await self._stop.wait()
            await self._leave()
            await serving
        finally:
            if watching is not None:
                watching.cancel()
            await self._tuner.close()
            await self._store.close()

    def _signalled(self, number: int) -> None:
        log.info("%s: stopping; another one stops at once", signal.Signals(number).name)
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        self._stop.set()

    def _engine_died(self) -> None:
        self._died = True
        self._stop.set()

    async def _leave(self) -> None:
        """Let what is inside finish, tell whoever still waits, close."""
        seconds = self._settings.drain_seconds
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
            f"xpeft serves at {address_of(self._socket)} · PLM {settings.plm} · bank {settings.bank}"
            f" · store {settings.store_shown} · keys {'on' if self._keys.required else 'off'}"
        )


class _Http(uvicorn.Server):
    """uvicorn, which leaves the signals to the program and says when it listens."""

    def __init__(self, app: FastAPI, *, announce: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_CLOSING_SECONDS,
            )
        )
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()


def _end_by_force_after(seconds: float) -> None:
    def end() -> None:
        log.critical("still not stopped %.1f s after the signal", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
