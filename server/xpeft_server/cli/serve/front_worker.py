"""A process that speaks HTTP for an engine in another process: `FrontProcesses` starts it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys

import uvloop

from xpeft_profiles import open_store
from xpeft_server.api.access.key_file import KeysInvalid
from xpeft_server.engine.errors import Unavailable
from xpeft_server.engine.profiles.store_watch import StoreWatch
from xpeft_server.remote.connected_engine import ConnectedEngine
from xpeft_server.remote.connected_tuner import ConnectedTuner
from xpeft_server.remote.peer import Method, Peer
from xpeft_server.remote.summed_metrics import ConnectedMetrics, MetricsReport
from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_server.tenant_limits import LimitsFile, LimitsInvalid, choose_tenant_limits

from .http_front import HttpFront
from .http_parts import build_http_parts
from .in_force import InForce
from .server_logging import configure_server_logging

log = logging.getLogger(__name__)


class FrontWorker:
    """Does what it is told over its connection to the engine's process, and ends with it.

    Args:
        listening: bound; other processes listen on it too.
    """

    _front: HttpFront
    _metrics: ConnectedMetrics
    _serving: asyncio.Task[None] | None = None
    _stopped = False

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._over = asyncio.Event()

    async def run(self, connection: socket.socket) -> None:
        methods: dict[str, Method] = {
            "serve": self._serve,
            "drain": self._drain,
            "stop": self._stop,
            "tell_metrics": self._tell_metrics,
            "ping": self._ping,
        }
        self._peer = Peer(methods, on_lost=self._lost)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self._peer, connection)
        await self._over.wait()
        self._peer.close()

    async def _serve(self, settings: Settings, connections: int, in_force: InForce) -> None:
        """Returns once it listens. Raises: Unavailable for a file that cannot be used, or an address that is taken."""
        configure_server_logging(settings)
        self._metrics = ConnectedMetrics(self._peer, top_profiles=settings.metrics_top_profiles)
        try:
            tenants = choose_tenant_limits(settings, in_force=in_force.limits)
            parts = build_http_parts(settings, os.environ, self._metrics, in_force=in_force)
        except (SettingsInvalid, KeysInvalid, LimitsInvalid) as error:
            raise Unavailable(str(error)) from None
        self._store = open_store(settings.store)
        self._watch = StoreWatch(self._store, self._metrics)
        self._engine = ConnectedEngine(self._peer, queue_seconds=settings.queue_seconds)
        await self._watch.start()
        await self._engine.start()
        self._front = HttpFront(
            settings,
            parts,
            engine=self._engine,
            store=self._store,
            tuner=ConnectedTuner(self._peer),
            tenants=tenants,
            metrics=self._metrics,
            listening=self._listening,
            connections=connections,
            shared=True,
        )
        if isinstance(tenants, LimitsFile):
            self._watching = asyncio.create_task(tenants.watch())
        gc.collect()
        gc.freeze()
        listens = asyncio.Event()
        self._serving = asyncio.create_task(self._front.serve(listens.set))
        self._serving.add_done_callback(lambda _: listens.set())
        await listens.wait()
        if self._serving.done() and (problem := self._serving.exception()):
            self._serving = None
            raise Unavailable(str(problem))

    async def _drain(self) -> None:
        """Returns when what was inside has been answered."""
        self._front.begin_drain()
        await self._front.wait_until_empty()

    async def _stop(self) -> None:
        """Also where nothing is served yet, and a second time."""
        if self._stopped:
            return
        self._stopped = True
        if self._serving is not None:
            self._front.close()
            await self._serving
            await self._engine.close()
            await self._watch.stop()
            await self._store.close()
        self._over.set()

    async def _tell_metrics(self) -> MetricsReport:
        return self._metrics.report()

    async def _ping(self) -> None:
        """A process that cannot answer this hangs."""

    def _lost(self) -> None:
        if not self._stopped:
            if self._serving is not None:
                log.critical("the process that has the engine went away: this one, which spoke HTTP for it, ends too")
            # Clients see their connections break, and find the port closed or another server there.
            os._exit(1)


def main() -> None:
    """Arguments: file descriptors of the connection to the engine's process, and of the socket to listen on."""
    connection, listening = (socket.socket(fileno=int(argument)) for argument in sys.argv[1:])
    # Ctrl-C, and supervisors that signal the whole group, reach this process too: only its parent stops it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, contextlib.closing(listening):
        runner.run(FrontWorker(listening).run(connection))


if __name__ == "__main__":
    main()
