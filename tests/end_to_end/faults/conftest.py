"""Two real servers on one Redis, one of them behind a bad network; and two on one SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from xpeft_profiles import read_profile_file

# What is tested here is who is answered, on cores that may be busy with other things.
PATIENT = ("--queue-seconds", "60")
# Seconds until Redis is given up, by the store: a busy machine may hold up whoever asks, or answers, for two.
GIVEN_UP = "socket_timeout=5&socket_connect_timeout=5"
RETRY_AFTER = re.compile(r"[1-9]\d*")


class Network:
    """A TCP proxy that delays, stops and cuts.

    Attributes:
        to: the port that new connections lead to.
        delay: seconds that each piece of data takes from the server.
        port: where it listens.
    """

    def __init__(self, to: int) -> None:
        self.to = to
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self.delay = 0.0
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End every connection; new ones are let in."""
        self._call(lambda: [writer.transport.abort() for writer in self._writers])

    def break_down(self) -> None:
        """End every connection and each new one at once."""
        self._refuses = True
        self.cut()

    def stop(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        self._call(self._flows.clear)

    def recover(self) -> None:
        """What was on its way arrives now."""
        self._refuses = False
        self.delay = 0.0
        self._call(self._flows.set)

    def close(self) -> None:
        self.break_down()
        self._flows.set()
        self._call(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(asyncio.sleep(0))
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _call(self, work: Callable[[], Any]) -> None:
        async def called() -> None:
            work()

        self._run(called())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._refuses:
                raise ConnectionRefusedError
            back, forth = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, forth}
        try:
            await asyncio.gather(self._pump(reader, forth, lambda: 0.0), self._pump(back, writer, lambda: self.delay))
        finally:
            self._writers -= {writer, forth}
            writer.transport.abort()
            forth.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: Callable[[], float]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(delay())
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


class World:
    """Servers ``near`` and ``far`` on one store; between ``far`` and Redis lies ``network``."""

    def __init__(self, near: Any, far: Any, *, redis_server: Any = None, network: Network | None = None) -> None:
        self.near = near
        self.far = far
        self.redis = redis_server
        self.network = network
        self._logged = 0

    def calm(self) -> None:
        """Everything works and both servers know."""
        if self.redis is not None and self.redis.process is None:
            self.redis.start()
        if self.network is not None:
            self.network.recover()
        for server in (self.near, self.far):
            server.wait_until_ready(20)

    def commands(self) -> redis.Redis:
        return redis.Redis(port=self.redis.port)

    def new_log(self) -> str:
        """What both servers have logged since this was last asked."""
        log = self.near.log.read_text()
        new, self._logged = log[self._logged :], len(log)
        return new

    def profile(self, seed: int) -> tuple[bytes, str]:
        """A profile file and its version."""
        body: bytes = self.near.profile(seed)
        return body, read_profile_file(body, max_bytes=len(body)).version

    def close(self) -> None:
        for server in (self.near, self.far):
            server.stop()
        if self.network is not None:
            self.network.close()
        if self.redis is not None:
            self.redis.kill()


@pytest.fixture(scope="session")
def redis_world(tmp_path_factory: pytest.TempPathFactory, redis_in: Any, server_starter: Any) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("redis-world")
    redis_server = redis_in(folder)
    redis_server.start()
    network = Network(redis_server.port)
    log = folder / "servers.log"
    urls = [f"redis://127.0.0.1:{port}/0?{GIVEN_UP}" for port in (redis_server.port, network.port)]
    near, far = _started(server_starter, urls, log)
    world = World(near, far, redis_server=redis_server, network=network)
    world.calm()
    yield world
    world.close()


@pytest.fixture(scope="session")
def sqlite_world(tmp_path_factory: pytest.TempPathFactory, server_starter: Any) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("sqlite-world")
    log = folder / "servers.log"
    near, far = _started(server_starter, [f"sqlite:///{folder}/profiles.db"] * 2, log)
    world = World(near, far)
    world.calm()
    yield world
    world.close()


def _started(start: Any, urls: list[str], log: Path) -> list[Any]:
    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(lambda url: start(url, *PATIENT, log=log), urls))


def _quiet(world: World) -> Iterator[World]:
    world.calm()
    world.new_log()
    yield world
    world.calm()
    log = world.new_log()
    assert "Traceback" not in log, log


@pytest.fixture
def redis_pair(redis_world: World) -> Iterator[World]:
    """The servers on Redis, calm before and after; no fault may be worth a traceback."""
    yield from _quiet(redis_world)


@pytest.fixture
def sqlite_pair(sqlite_world: World) -> Iterator[World]:
    """The servers on SQLite, calm before and after; no fault may be worth a traceback."""
    yield from _quiet(sqlite_world)


@pytest.fixture
def start_patient(start_server: Any) -> Callable[..., Any]:
    """Servers of one test that take requests however long the queue is."""
    return lambda store, *arguments, **options: start_server(store, *PATIENT, *arguments, **options)


@pytest.fixture(scope="session")
def assert_unavailable() -> Callable[..., None]:
    """An answer that says: not now, come again."""

    def check(answer: httpx.Response, code: str | None = None) -> None:
        assert answer.status_code == 503, answer.text
        assert RETRY_AFTER.fullmatch(answer.headers["retry-after"])
        assert answer.headers["x-request-id"]
        if code is not None:
            assert answer.json()["error"]["code"] == code, answer.text

    return check
