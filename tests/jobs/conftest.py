"""Servers without HTTP: tuners over one store, each with a worker that waits to be told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest

from xpeft_profiles import (
    BankGeometry,
    JobKey,
    JobRecord,
    MemoryStore,
    Profile,
    ProfileKey,
    StoredJob,
    StoreUnavailable,
    write_profile_file,
)
from xpeft_profiles.memory.job_store import MemoryJobStore
from xpeft_server.engine.metrics import Metrics
from xpeft_server.jobs.publisher import Publisher
from xpeft_server.jobs.requests import TuningExample, TuningRequest
from xpeft_server.jobs.tuner import Tuner
from xpeft_server.jobs.worker_port import Progress, Tuned

GEOMETRY = BankGeometry("sha256:" + "ab" * 32, blocks=2, adapters=16, hidden=8, width=4)


class Clock:
    def __init__(self) -> None:
        self.now = 1_767_225_600.0

    def __call__(self) -> float:
        return self.now


class FragileJobStore(MemoryJobStore):
    """Can be down, which nobody notices who renews nothing; counts what it is asked to write."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.down = False
        self.replaced: list[JobRecord] = []

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailable("the store is down")

    async def replace(self, record: JobRecord, *, lease: float) -> bool:
        self._answer()
        self.replaced.append(record)
        return await super().replace(record, lease=lease)

    async def renew(self, keys: Sequence[JobKey], *, lease: float) -> list[bool]:
        if keys:
            self._answer()
        return await super().renew(keys, lease=lease)

    async def unfinished(self) -> list[StoredJob]:
        self._answer()
        return await super().unfinished()


class FragileStore(MemoryStore):
    """Is down with its jobs."""

    def __init__(self, clock: Clock, jobs: FragileJobStore) -> None:
        super().__init__(clock)
        self.jobs = self._fragile = jobs

    async def ping(self) -> None:
        self._fragile._answer()


class WaitingWorker:
    """``running`` is the job that it works on; its result ends it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.killed: list[str] = []
        self.closed = False
        self.running: asyncio.Future[Tuned] | None = None

    async def tune(self, request: TuningRequest, progress: Callable[[Progress], None]) -> Tuned:
        self.seen.append(request.profile.name)
        self.progress = progress
        self.running = asyncio.get_running_loop().create_future()
        try:
            return await self.running
        except asyncio.CancelledError:
            self.killed.append(request.profile.name)
            raise
        finally:
            self.running = None

    async def close(self) -> None:
        self.closed = True

    async def begins(self, jobs: int = 1) -> asyncio.Future[Tuned]:
        async with asyncio.timeout(10):
            while len(self.seen) < jobs or self.running is None:
                await asyncio.sleep(0)
        return self.running

    async def kills(self, *names: str) -> None:
        """Wait until these are the jobs that were killed."""
        async with asyncio.timeout(10):
            while self.killed != list(names):
                await asyncio.sleep(0)


class Server:
    """A tuner and its worker."""

    def __init__(self, store: MemoryStore, metrics: Metrics) -> None:
        self.worker = WaitingWorker()
        self.tuner = Tuner(
            store,
            worker=self.worker,
            publisher=Publisher(store, geometry=GEOMETRY, max_bytes=1 << 16),
            check=lambda request: None,
            most=4,
            metrics=metrics,
        )

    async def submit(self, name: str = "desk", tenant: str = "acme") -> JobRecord:
        examples = (TuningExample("a", "x"), TuningExample("b", "y"))
        return await self.tuner.submit(TuningRequest(ProfileKey(tenant, name), examples, None, {}))

    async def becomes(self, key: JobKey, status: str) -> JobRecord:
        async with asyncio.timeout(10):
            while (record := await self.tuner.get(key)).status != status:
                await asyncio.sleep(0)
        return record

    async def round(self) -> None:
        """One round of renewals, now."""
        await self.tuner._keeper.try_to_renew()


@pytest.fixture
def clock() -> Clock:
    """Of the store."""
    return Clock()


@pytest.fixture
def jobs(clock: Clock) -> FragileJobStore:
    return FragileJobStore(clock)


@pytest.fixture
def store(clock: Clock, jobs: FragileJobStore) -> MemoryStore:
    return FragileStore(clock, jobs)


@pytest.fixture
def tuned() -> Tuned:
    """What a worker that succeeds gives back."""
    mask = np.zeros((2, 16), np.uint8)
    mask[:, :3] = 1
    profile = Profile(
        bank=GEOMETRY.fingerprint,
        mask_a=mask,
        mask_b=mask,
        head_weight=np.ones((2, 8), np.float16),
        labels=("x", "y"),
    )
    return Tuned(write_profile_file(profile), {"epoch": 1})


StartServer = Callable[[], Server]


@pytest.fixture
async def new_server(store: MemoryStore) -> AsyncIterator[StartServer]:
    """Servers that share the store, not yet started."""
    servers: list[Server] = []

    def build() -> Server:
        servers.append(Server(store, Metrics()))
        return servers[-1]

    yield build
    for server in servers:
        await server.tuner.close()


@pytest.fixture
async def server(new_server: StartServer) -> Server:
    server = new_server()
    await server.tuner.start()
    return server
