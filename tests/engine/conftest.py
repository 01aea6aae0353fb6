"""An engine over a tiny model, and a store that can be slowed, broken and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from xpeft_profiles import BankGeometry, MemoryStore, Profile, ProfileKey, StoredProfile, StoreUnavailable
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.engine_limits import EngineLimits
from xpeft_server.engine.metrics import Metrics
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.classifier import Classifier
from xpeft_server.model.plm import Plm, load_plm


class FragileStore(MemoryStore):
    """A memory store that counts questions, can be down, and can hold its answers back."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.asked: list[tuple[str, list[ProfileKey]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def _question(self, kind: str, keys: Sequence[ProfileKey]) -> None:
        self.asked.append((kind, list(keys)))
        await self.gate.wait()
        if self.down:
            raise StoreUnavailable("the store is down")

    async def get_many(self, keys: Sequence[ProfileKey]) -> list[StoredProfile | None]:
        await self._question("get_many", keys)
        return await super().get_many(keys)

    async def versions(self, keys: Sequence[ProfileKey]) -> list[str | None]:
        await self._question("versions", keys)
        return await super().versions(keys)

    async def ping(self) -> None:
        if self.down:
            raise StoreUnavailable("the store is down")

    async def open(self) -> None:
        await self.ping()

    def count(self, kind: str) -> int:
        return sum(each == kind for each, _ in self.asked)


def make_profile(geometry: BankGeometry, seed: int, *, labels: int | None = 3, k: int = 2) -> Profile:
    """A random hard profile with an LN affine and, unless ``labels`` is None, a head of its own."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((2, geometry.blocks, geometry.adapters), bool)
    for row in masks.reshape(-1, geometry.adapters):
        row[rng.choice(geometry.adapters, k, replace=False)] = True
    return Profile(
        bank=geometry.fingerprint,
        mask_a=masks[0],
        mask_b=masks[1],
        ln_weight=rng.normal(1, 0.2, (geometry.blocks, geometry.width)).astype(np.float16),
        ln_bias=rng.normal(0, 0.2, (geometry.blocks, geometry.width)).astype(np.float16),
        head_weight=None if labels is None else rng.normal(0, 1, (labels, geometry.hidden)).astype(np.float16),
        labels=None if labels is None else tuple(f"label{number}" for number in range(labels)),
    )


@pytest.fixture
def profile() -> Callable[..., Profile]:
    return make_profile


@pytest.fixture(scope="session")
def plm(tiny_bert: Path) -> Plm:
    return load_plm(str(tiny_bert))


@pytest.fixture
def make_classifier(plm: Plm) -> Callable[..., Classifier]:
    def make(*, slots: int = 64, head_rows: int = 512) -> Classifier:
        return Classifier(plm, open_bank("random:N=12,R=8,seed=1,std=0.3", plm.facts), slots=slots, head_rows=head_rows)

    return make


@pytest.fixture
def store() -> FragileStore:
    return FragileStore()


EngineMaker = Callable[..., Awaitable[Engine]]


@pytest.fixture
async def start_engine(make_classifier: Callable[..., Classifier], store: FragileStore) -> AsyncIterator[EngineMaker]:
    engines: list[Engine] = []

    async def start(*, slots: int = 64, head_rows: int = 512, **limits: int) -> Engine:
        given = {
            "max_batch_tokens": 512,
            "queue_limit": 1000,
            "queue_token_limit": 100_000,
            "queue_seconds": 60.0,
            "max_inputs": 256,
            "max_sequences": 256,
            "host_cache_bytes": 1 << 24,
        } | limits
        classifier = make_classifier(slots=slots, head_rows=head_rows)
        engine = Engine(classifier, store, limits=EngineLimits(**given), metrics=Metrics())
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in engines:
        await engine.close()
