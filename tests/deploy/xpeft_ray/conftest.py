"""Replicas without Ray: they answer, hold back, refuse and go away as told."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic.warnings import PydanticDeprecatedSince20

from xpeft_profiles import BankGeometry, MemoryStore, ProfileKey
from xpeft_ray.remote_engine import RemoteEngine
from xpeft_ray.replicas import EngineReport
from xpeft_server.engine.errors import EngineError
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.profiles.store_watch import StoreWatch
from xpeft_server.engine.requests import (
    ClassifiedText,
    ClassifyAnswer,
    ClassifyRequest,
    EngineInfo,
    EngineStatus,
    Finished,
    GenerateRequest,
    News,
    Piece,
    Started,
    TextInput,
)
from xpeft_server.remote.answering import Outcome
from xpeft_server.remote.error_value import ErrorValue
from xpeft_server.remote.trail import Recorder, Trail

with warnings.catch_warnings():
    # Fields of Ray's own pydantic models, as Ray is imported.
    warnings.simplefilter("ignore", PydanticDeprecatedSince20)
    import ray.serve  # noqa: F401

VERSION = "sha256:" + "cd" * 32
INTERVAL = 0.01
PATIENCE = 0.2
INFO = EngineInfo(
    plm="tiny",
    model_type="llama",
    device="cpu",
    dtype="float32",
    kernels={},
    generates=True,
    context_length=64,
    slots=8,
    max_batch_tokens=512,
    queue_limit=64,
    queue_token_limit=4096,
    max_inputs=4,
)
NEWS: tuple[News, ...] = (
    Started(VERSION, 0.001),
    Piece("Hel"),
    Piece("lo"),
    Finished("stop", 3, 2, 0.002),
)


def report(replica: str = "one", *, bank: str = "ab", **checks: str) -> EngineReport:
    checks = {"engine": "ok", "store": "ok"} | checks
    return EngineReport(
        replica=replica,
        info=INFO,
        geometry=BankGeometry(fingerprint="sha256:" + bank * 32, blocks=2, adapters=16, hidden=8, width=4),
        status=EngineStatus(set(checks.values()) == {"ok"}, checks),
        exposition=b"",
    )


class FakeReplicas:
    """``faults``: raised by the next calls, one each, None for none; ``break_after``: news before it is raised."""

    def __init__(self) -> None:
        self.told: list[EngineReport] = [report()]
        self.rounds = 0
        self.seen: list[Any] = []
        self.faults: list[Exception | None] = []
        self.break_after = 0
        self.hold: asyncio.Event | None = None
        self.waiting = asyncio.Event()
        self.withdrawn = 0

    async def reports(self) -> list[EngineReport]:
        self.rounds += 1
        return self.told

    async def classify(self, request: ClassifyRequest) -> Outcome:
        recorder = Recorder(request.journey)
        fault = await self._begin(request)
        request.journey.prompt_tokens = 7
        one = ClassifiedText("refund", 0.75, (0.75, 0.25), 2)
        answer = ClassifyAnswer(VERSION, ("refund", "baggage"), (one,) * len(request.inputs), 7, 0.001, 0.002)
        refused = ErrorValue.of(fault) if isinstance(fault, EngineError) else None
        return Outcome(refused or answer, recorder.trail())

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[News | ErrorValue | Trail, None]:
        recorder = Recorder(request.journey)
        after = self.break_after
        fault = await self._begin(request, raises=not after)
        for number, news in enumerate(NEWS):
            if fault is not None and number == after:
                if isinstance(fault, EngineError):
                    yield ErrorValue.of(fault)
                    return
                raise fault
            if not isinstance(news, Piece):
                request.journey.completion_tokens += 1
                yield recorder.trail()
            yield news

    async def _begin(self, request: Any, *, raises: bool = True) -> Exception | None:
        self.seen.append(request)
        fault = self.faults.pop(0) if self.faults else None
        if self.hold is not None:
            self.waiting.set()
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.withdrawn += 1
                raise
        if raises and fault is not None and not isinstance(fault, EngineError):
            raise fault
        return fault


@pytest.fixture
def replicas() -> FakeReplicas:
    return FakeReplicas()


@pytest.fixture
def reported() -> Callable[..., EngineReport]:
    return report


@pytest.fixture
async def start_engine(replicas: FakeReplicas) -> AsyncIterator[Callable[..., Awaitable[RemoteEngine]]]:
    watch = StoreWatch(MemoryStore(), Metrics())
    await watch.start()
    engines: list[RemoteEngine] = []

    async def start(**options: Any) -> RemoteEngine:
        engine = RemoteEngine(replicas, watch=watch, interval=INTERVAL, patience=PATIENCE, **options)
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in engines:
        await engine.close()
    await watch.stop()


@pytest.fixture
async def engine(start_engine: Callable[..., Awaitable[RemoteEngine]]) -> RemoteEngine:
    return await start_engine()


@pytest.fixture
def next_round(replicas: FakeReplicas) -> Callable[[], Awaitable[None]]:
    """Waits until what the replicas say now has been heard."""

    async def wait() -> None:
        # The round that is under way may have been told of before.
        until = replicas.rounds + 3
        async with asyncio.timeout(10):
            while replicas.rounds < until:
                await asyncio.sleep(0)

    return wait


@pytest.fixture
def asked() -> ClassifyRequest:
    return ClassifyRequest(ProfileKey("acme", "desk"), (TextInput("hello"),))


@pytest.fixture
def prompt() -> GenerateRequest:
    return GenerateRequest("acme", ProfileKey("acme", "desk"), "Say")
