"""HTTP in processes of its own, which do not share the GIL with the engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import socket
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from xpeft_server.api.engine_port import EnginePort
from xpeft_server.api.tuning.tuner_port import TunerPort
from xpeft_server.engine.errors import EngineError
from xpeft_server.engine.metrics import Metrics
from xpeft_server.remote.connected_engine import engine_methods
from xpeft_server.remote.connected_tuner import tuner_methods
from xpeft_server.remote.error_value import DOMAIN_ERRORS
from xpeft_server.remote.peer import Peer
from xpeft_server.remote.summed_metrics import EndedProcesses, MetricsReport
from xpeft_server.settings import Settings

from .child_process import child_command, child_environment, how_it_ended, kill
from .front import FrontFailed
from .in_force import InForce

log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 1.0
"""Least time between the start of a process and the start of the one that replaces it."""

_LOOK_SECONDS: Final = 5.0
_SILENT_SECONDS: Final = 30.0
"""A process that answers no ping for this long hangs and is killed: its connections could wait for ever."""

_ENDING_SECONDS: Final = 2.0
_METRICS_SECONDS: Final = 2.0


class FrontProcesses:
    """A `Front` of ``settings.http_processes`` processes that share a socket. A process that ends is replaced.

    They call the engine and the tuner in this process; the store and the settings' files they read themselves. A
    process that starts while a file of keys, limits or certificates cannot be used is given what is in force.

    Args:
        in_force: the keys, limits and certificates in force.
        metrics: of this process, shown with theirs.
        listening: bound.
        connections: most open connections of each process.
        environ: of this process.
        command: what is started, with two file descriptors as its arguments.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        engine: EnginePort,
        tuner: TunerPort,
        metrics: Metrics,
        listening: socket.socket,
        connections: int,
        environ: Mapping[str, str],
        in_force: Callable[[], InForce] = InForce,
        command: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._methods = {**engine_methods(engine), **tuner_methods(tuner), "families": self._families}
        self._metrics = metrics
        self._listening = listening
        self._connections = connections
        self._in_force = in_force
        self._environ = child_environment(environ)
        self._command = command or child_command("xpeft_server.cli.serve.front_worker")
        self._peers: set[Peer] = set()
        self._listeners: set[Peer] = set()  # of them
        self._told: dict[Peer, bytes] = {}  # the families that each of these told last
        self._hearing: dict[Peer, asyncio.Task[None]] = {}  # those that were asked and have not told yet
        self._ended = EndedProcesses()
        self._drains = False
        self._telling: list[asyncio.Task[None]] = []
        self._closing = asyncio.Event()

    async def serve(self, announce: Callable[[], None]) -> None:
        """Raises: FrontFailed if one of the first processes cannot start."""
        listening = [asyncio.Event() for _ in range(self._settings.http_processes)]
        keeping = [asyncio.create_task(self._keep(each)) for each in listening]
        announcing = asyncio.create_task(_announce_once(listening, announce))
        try:
            await asyncio.gather(*keeping)
        except FrontFailed:
            self._closing.set()
            for peer in self._peers:
                peer.close()
            await asyncio.gather(*keeping, return_exceptions=True)
            raise
        finally:
            announcing.cancel()

    def begin_drain(self) -> None:
        self._drains = True
        self._tell("drain")

    async def wait_until_empty(self) -> None:
        await asyncio.gather(*self._telling)

    def close(self) -> None:
        self._closing.set()
        self._tell("stop")

    def _tell(self, method: str) -> None:
        self._telling += [asyncio.create_task(_quietly(peer, method)) for peer in self._listeners]

    async def _keep(self, listens: asyncio.Event) -> None:
        """Run one process after another until told to end."""
        while True:
            began = time.monotonic()
            try:
                how = await self._run_one(listens)
            except OSError as error:
                how = f"with {error}"
            if self._closing.is_set():
                return
            if not listens.is_set():
                raise FrontFailed(f"a process that is to speak HTTP ended {how} before it listened")
            log.error("a process that spoke HTTP ended %s: another one takes its place", how)
            await asyncio.sleep(began + _PAUSE_SECONDS - time.monotonic())

    async def _run_one(self, listens: asyncio.Event) -> str:
        """From its start to its end. Returns: how it ended."""
        here, there = socket.socketpair()
        with there:
            try:
                process = await self._start(there)
            except BaseException:
                here.close()
                raise
        peer = Peer(self._methods, on_lost=lambda: None)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: peer, here)
        self._peers.add(peer)
        try:
            if not self._closing.is_set():
                await peer.call("serve", self._settings, self._connections, self._in_force())
                self._listeners.add(peer)
                listens.set()
                log.info("process %d speaks HTTP", process.pid)
            # It may have started after the others were told.
            if self._closing.is_set():
                await peer.call("stop")
            elif self._drains:
                self._telling.append(asyncio.create_task(_quietly(peer, "drain")))
            await _until_it_ends(process, peer)
        except DOMAIN_ERRORS as error:
            # It said why, or its connection broke.
            log.error("process %d does not speak HTTP: %s", process.pid, error)
        finally:
            self._peers.discard(peer)
            self._listeners.discard(peer)
            if peer in self._told:
                self._ended.add(pickle.loads(self._told.pop(peer)))  # noqa: S301  # see peer.py
            peer.close()
            await _end(process)
        return how_it_ended(process)

    async def _start(self, connection: socket.socket) -> Process:
        descriptors = connection.fileno(), self._listening.fileno()
        return await asyncio.create_subprocess_exec(
            *self._command, *map(str, descriptors), stdin=DEVNULL, env=self._environ, pass_fds=descriptors
        )

    async def _families(self) -> list[bytes]:
        """Those of every process, and of those that ended. The process that asks sums them.

        Requests by profile are in this process's alone, which counts what all others hand over.
        """
        await asyncio.gather(*map(self._ask_families, self._listeners))
        own = pickle.dumps(self._metrics.families())
        return [own, *self._told.values(), pickle.dumps(self._ended.families())]

    async def _ask_families(self, peer: Peer) -> None:
        """A process that does not answer in time is shown as it was last: what it counts only grows."""
        if peer not in self._hearing:
            self._hearing[peer] = asyncio.create_task(self._hear(peer))
        await asyncio.wait([self._hearing[peer]], timeout=_METRICS_SECONDS)

    async def _hear(self, peer: Peer) -> None:
        """However late it tells: what it has handed over is nowhere else."""
        try:
            with contextlib.suppress(EngineError):
                told: MetricsReport = await peer.call("tell_metrics")
                self._metrics.profile_requests.add(told.profile_requests)
                if peer in self._listeners:
                    self._told[peer] = told.families
        finally:
            del self._hearing[peer]


async def _announce_once(listening: list[asyncio.Event], announce: Callable[[], None]) -> None:
    for each in listening:
        await each.wait()
    announce()


async def _until_it_ends(process: Process, peer: Peer) -> None:
    """Wait for its end; kill it if it hangs."""
    ended = asyncio.create_task(process.wait())
    try:
        while not (await asyncio.wait([ended], timeout=_LOOK_SECONDS))[0]:
            try:
                await asyncio.wait_for(peer.call("ping"), _SILENT_SECONDS)
            except TimeoutError:
                log.error("process %d, which speaks HTTP, said nothing for %g s", process.pid, _SILENT_SECONDS)
                kill(process)
    finally:
        ended.cancel()


async def _end(process: Process) -> None:
    """It ends by itself once its connection is closed; to kill it at once would hide how it ended."""
    try:
        await asyncio.wait_for(process.wait(), _ENDING_SECONDS)
    except TimeoutError:
        kill(process)
        await process.wait()


async def _quietly(peer: Peer, method: str) -> None:
    """Call it; a process that has gone has nothing left to do."""
    with contextlib.suppress(*DOMAIN_ERRORS):
        await peer.call(method)
