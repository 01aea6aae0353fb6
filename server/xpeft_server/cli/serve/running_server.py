"""A server that runs: one event loop, the engine beside it, and the way out."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from functools import partial
from socket import socket
from typing import Final

import typer
import uvloop

from xpeft_profiles import ProfileStore
from xpeft_server.api.access.key_ring import KeyRing
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import LimitsFile, LimitsOfTenants

from .assembly import build_engine
from .front import Front, FrontFailed
from .front_processes import FrontProcesses
from .http_front import CLOSING_SECONDS, HttpFront
from .http_parts import HttpParts
from .in_force import in_force
from .server_socket import address_of
from .tls import ServerTls
from .tuner_assembly import build_tuner

log = logging.getLogger(__name__)

# The part of the time to drain that is kept for closing, if that is less than a second.
_CLOSING_SHARE: Final = 0.25
# Interrupted tuning jobs are saved even if there is no time to drain.
_TELLING_SECONDS: Final = 0.5
_SWITCH_SECONDS: Final = 0.001


class RunningServer:
    """Everything between two signals. ``run`` gives the exit code: 0 when asked to stop, 1 if the engine died.

    Args:
        parts: of HTTP, where this process speaks it; others make their own.
        listening: bound.
        connections: how many each process that speaks HTTP may have open.
        environ: what processes that it starts get, but for what was meant for the server itself.
    Raises: SettingsInvalid, ModelError or BankError if the engine cannot be built.
    """

    _failed = False

    def __init__(
        self,
        settings: Settings,
        parts: HttpParts,
        *,
        store: ProfileStore,
        tenants: LimitsOfTenants,
        metrics: Metrics,
        listening: socket,
        connections: int,
        environ: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._store = store
        self._stop = asyncio.Event()
        self._engine: Engine = build_engine(settings, store, metrics, tenants=tenants, on_death=self._engine_died)
        self._tuner = build_tuner(settings, self._engine, store, metrics, tenants=tenants, environ=environ)
        self._address = address_of(listening, "http" if parts.tls is None else "https")
        self._keys = "on" if parts.keys.required else "off"
        self._watched: list[LimitsFile | KeyRing | ServerTls] = [tenants] if isinstance(tenants, LimitsFile) else []
        self._front: Front
        if settings.http_processes:
            # For processes that replace others.
            self._watched += [each for each in (parts.keys, parts.tls) if isinstance(each, KeyRing | ServerTls)]
            # Each process builds its own.
            parts.close(CLOSING_SECONDS)
            self._front = FrontProcesses(
                settings,
                engine=self._engine,
                tuner=self._tuner,
                metrics=metrics,
                listening=listening,
                connections=connections,
                environ=environ,
                in_force=partial(in_force, parts.keys, tenants, parts.tls),
            )
        else:
            self._front = HttpFront(
                settings,
                parts,
                engine=self._engine,
                store=store,
                tuner=self._tuner,
                tenants=tenants,
                metrics=metrics,
                listening=listening,
                connections=connections,
            )

    def run(self) -> int:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())
        return 1 if self._failed else 0

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        watching = [loop.create_task(each.watch()) for each in self._watched]
        try:
            await self._engine.start()
            await self._tuner.start()
            # What is loaded by now stays: the garbage collector need not go through it again.
            gc.collect()
            gc.freeze()
            # Longest time the device thread waits for the event loop to release the GIL.
            sys.setswitchinterval(_SWITCH_SECONDS)
            serving = loop.create_task(self._front.serve(self._announce))
            serving.add_done_callback(lambda _: self._stop.set())
            await self._stop.wait()
            await self._leave()
            await serving
        except FrontFailed as error:
            log.critical("%s", error)
            self._failed = True
        finally:
            for each in watching:
                each.cancel()
            await self._tuner.close()
            await self._store.close()

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
        self._failed = True
        self._stop.set()

    async def _leave(self) -> None:
        """Let requests inside finish, fail those that still wait, close."""
        seconds = self._settings.drain_seconds
        # Closing takes time, however little there is to drain.
        _end_by_force_after(max(seconds, CLOSING_SECONDS) + CLOSING_SECONDS)
        self._front.begin_drain()
        grace = seconds - min(CLOSING_SECONDS, seconds * _CLOSING_SHARE)
        # Requests that follow a tuning job are inside until it ends; this ends all jobs.
        ending = [asyncio.ensure_future(self._tuner.close()), asyncio.ensure_future(self._front.wait_until_empty())]
        await asyncio.wait(ending, timeout=max(grace, _TELLING_SECONDS))
        await self._engine.close()
        self._front.close()

    def _announce(self) -> None:
        settings = self._settings
        typer.echo(
            f"xpeft serves at {self._address} · PLM {settings.plm} · bank {settings.bank}"
            f" · store {settings.store_shown} · keys {self._keys}"
        )


def _end_by_force_after(seconds: float) -> None:
    def end() -> None:
        log.critical("still not stopped %.1f s after the signal", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
