"""A server without a model: the real application over a memory store and an engine that answers as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from xpeft_profiles import BankGeometry, MemoryStore, Profile, write_profile_file
from xpeft_server.api.access.auth import Keys, NoKeys
from xpeft_server.api.access.key_ring import KeyRing
from xpeft_server.api.app import create_app
from xpeft_server.api.audit.log import AuditLog
from xpeft_server.api.connection.connections import ConnectionLimits
from xpeft_server.api.drain import Drain
from xpeft_server.cli.serve.http_server import HttpServer
from xpeft_server.cli.serve.server_socket import bind
from xpeft_server.cli.serve.tuning_checks import check_examples
from xpeft_server.engine.errors import Overloaded
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.requests import ClassifiedText, ClassifyAnswer, ClassifyRequest, EngineInfo, EngineStatus
from xpeft_server.jobs.errors import JobFailure
from xpeft_server.jobs.publisher import Publisher
from xpeft_server.jobs.requests import TuningRequest
from xpeft_server.jobs.tuner import Tuner
from xpeft_server.jobs.worker_port import Progress, Tuned
from xpeft_server.settings import Settings

BANK = "sha256:" + "ab" * 32
VERSION = "sha256:" + "cd" * 32


class FakeEngine:
    """Answers every text with the first label; ``failure`` is raised instead, ``hold`` is waited for."""

    def __init__(self) -> None:
        self.geometry = BankGeometry(
            fingerprint=BANK, blocks=2, adapters=16, hidden=8, width=4, shared_heads={"mood": ("sad", "glad")}
        )
        self.info = EngineInfo(
            plm="tiny",
            model_type="bert",
            device="cpu",
            dtype="float32",
            kernels={"apply_adapters": "reference"},
            generates=False,
            context_length=512,
            slots=8,
            max_batch_tokens=1024,
            queue_limit=64,
            queue_token_limit=4096,
            max_inputs=4,
        )
        self.checks = {"engine": "ok", "store": "ok"}
        self.seen: list[ClassifyRequest] = []
        self.failure: Exception | None = None
        self.full = False
        self.hold: asyncio.Event | None = None
        self.waiting = asyncio.Event()
        self.withdrawn = asyncio.Event()

    def check_room(self, tenant: str) -> None:
        if self.full:
            raise Overloaded("the queue is full", retry_after=2.0)

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        self.seen.append(request)
        if self.failure is not None:
            raise self.failure
        if self.hold is not None:
            self.waiting.set()
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.withdrawn.set()
                raise
        one = ClassifiedText("refund", 0.75, (0.75, 0.25), 2)
        return ClassifyAnswer(VERSION, ("refund", "baggage"), (one,) * len(request.inputs), 7, 0.001, 0.002)

    def status(self) -> EngineStatus:
        return EngineStatus(all(check == "ok" for check in self.checks.values()), dict(self.checks))


class FakeWorker:
    """Works on a job until it is told how that ends."""

    def __init__(self) -> None:
        self.seen: list[TuningRequest] = []
        self.killed: list[TuningRequest] = []
        self.closed = False
        self._running: asyncio.Future[Tuned] | None = None

    async def tune(self, request: TuningRequest, progress: Callable[[Progress], None]) -> Tuned:
        self.seen.append(request)
        self.progress = progress
        self._running = asyncio.get_running_loop().create_future()
        try:
            return await self._running
        except asyncio.CancelledError:
            self.killed.append(request)
            raise
        finally:
            self._running = None

    async def close(self) -> None:
        self.closed = True

    async def begins(self, jobs: int = 1) -> None:
        """Wait until it works on the job of this number, from 1."""
        async with asyncio.timeout(10):
            while len(self.seen) < jobs or self._running is None:
                await asyncio.sleep(0)

    def ends(self, outcome: bytes | JobFailure) -> None:
        """With a profile file, or a failure."""
        assert self._running is not None
        if isinstance(outcome, JobFailure):
            self._running.set_exception(outcome)
        else:
            self._running.set_result(Tuned(outcome, REPORT))


REPORT = {
    "rows": {"train": 3, "held_out": 1},
    "accuracy": {"train": 1.0, "held_out": 1.0, "head_alone": 0.5, "majority": 0.5},
    "correlation": None,
    "loss": {"train": 0.1, "held_out": 0.2, "head_alone": 0.4, "majority": None},
    "epoch": 2,
    "cut": 0,
}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def store() -> MemoryStore:
    store = MemoryStore()
    await store.open()
    return store


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(top_profiles=3)


@pytest.fixture
def drain() -> Drain:
    return Drain()


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    """Small limits; a test may ask for others."""
    limits = {"max_inputs": 4, "max_body_bytes": 4096, "max_profile_bytes": 2048, "max_tuning_rows": 8}
    return Settings(**limits | getattr(request, "param", {}))


SECRETS = {
    "acme-admin": ("acme", "admin"),
    "acme-infer": ("acme", "infer"),
    "other-admin": ("other", "admin"),
    "ops": (None, "operator"),
}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key for each of ``SECRETS``, whose names are the secrets too."""
    path = tmp_path / "keys.json"
    entries = [
        {"id": secret, "tenant": tenant, "role": role, "sha256": sha256(secret.encode()).hexdigest(), "expires": None}
        for secret, (tenant, role) in SECRETS.items()
    ]
    path.write_text(json.dumps({"keys": entries}))
    return path


@pytest.fixture
def keys() -> Keys:
    return NoKeys()


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
async def tuner(
    settings: Settings, engine: FakeEngine, store: MemoryStore, metrics: Metrics, worker: FakeWorker
) -> AsyncIterator[Tuner]:
    """The real one over the fake worker; of what it checks only the examples are."""
    tuner = Tuner(
        store,
        worker=worker,
        publisher=Publisher(store, geometry=engine.geometry, max_bytes=settings.max_profile_bytes),
        check=lambda request: check_examples(request, settings.max_tuning_rows),
        most=settings.tuning_jobs_per_tenant,
        metrics=metrics,
    )
    await tuner.start()
    yield tuner
    await tuner.close()


class AuditSink:
    """Keeps what was written. ``failure`` is raised instead."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.failure: OSError | None = None

    def write(self, lines: Sequence[bytes]) -> None:
        if self.failure is not None:
            raise self.failure
        assert all(line.endswith(b"\n") and b"\n" not in line[:-1] for line in lines)
        self.entries += map(json.loads, lines)

    def close(self) -> None:
        pass


@pytest.fixture
def audit_sink() -> AuditSink:
    return AuditSink()


@pytest.fixture
def audit(audit_sink: AuditSink) -> Iterator[AuditLog]:
    log = AuditLog(audit_sink)
    yield log
    log.close()


@pytest.fixture
def audited(audit: AuditLog, audit_sink: AuditSink) -> Callable[[], list[dict[str, Any]]]:
    """What the audit log was told, which is over then."""

    def read() -> list[dict[str, Any]]:
        audit.close()
        return audit_sink.entries

    return read


@pytest.fixture
def app(
    settings: Settings,
    engine: FakeEngine,
    store: MemoryStore,
    tuner: Tuner,
    keys: Keys,
    metrics: Metrics,
    audit: AuditLog,
    drain: Drain,
) -> FastAPI:
    return create_app(
        settings, engine=engine, store=store, tuner=tuner, keys=keys, metrics=metrics, audit=audit, drain=drain
    )


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        yield client


@pytest.fixture
def connection_limits() -> ConnectionLimits:
    return ConnectionLimits(most=100, idle_seconds=30, send_seconds=30)


@pytest.fixture
async def port(
    app: FastAPI, settings: Settings, metrics: Metrics, connection_limits: ConnectionLimits
) -> AsyncIterator[int]:
    """Where a real server listens."""
    listening = bind("127.0.0.1", 0)
    server = HttpServer(
        app, tls=None, limits=connection_limits, metrics=metrics, closing_seconds=5, access_log=settings.access_log
    )
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0)
    yield listening.getsockname()[1]
    server.should_exit = True
    await running


@pytest.fixture
async def keyed(
    settings: Settings,
    engine: FakeEngine,
    store: MemoryStore,
    tuner: Tuner,
    key_file: Path,
    metrics: Metrics,
    audit: AuditLog,
) -> AsyncIterator[Callable[[str | None], httpx.AsyncClient]]:
    """A server with keys: a client for each secret."""
    app = create_app(
        settings, engine=engine, store=store, tuner=tuner, keys=KeyRing(key_file), metrics=metrics, audit=audit
    )
    clients: list[httpx.AsyncClient] = []

    def client_of(secret: str | None) -> httpx.AsyncClient:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        transport = httpx.ASGITransport(app)
        clients.append(httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers))
        return clients[-1]

    yield client_of
    for client in clients:
        await client.aclose()


def make_profile(seed: int = 0, *, bank: str = BANK, hidden: int = 8) -> Profile:
    random = np.random.default_rng(seed)
    mask = np.zeros((2, 16), np.uint8)
    mask[:, :3] = 1
    return Profile(
        bank=bank,
        mask_a=mask,
        mask_b=mask,
        head_weight=random.normal(size=(2, hidden)).astype(np.float16),
        labels=("refund", "baggage"),
    )


@pytest.fixture
def profile_file() -> Callable[..., bytes]:
    """Builds profile files: another seed is another version."""

    def build(seed: int = 0, *, bank: str = BANK, hidden: int = 8) -> bytes:
        return write_profile_file(make_profile(seed, bank=bank, hidden=hidden))

    return build


@pytest.fixture
def metric(metrics: Metrics) -> Callable[[str], float]:
    """The value of one series, as it stands in the text that a scrape gets."""

    def read(series: str) -> float:
        for line in metrics.render().decode().splitlines():
            if line.rpartition(" ")[0] == series:
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no series {series}")

    return read
