"""Profiles to store, a real Redis, and each kind of store on a database of its own."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import redis

from xpeft_profiles import Profile, ProfileKey, ProfileStore, open_store

BANK = "sha256:" + "5a" * 32


class MakeProfile(Protocol):
    def __call__(self, seed: int = 0, **options: Any) -> Profile: ...


def _make_profile(
    seed: int = 0,
    *,
    blocks: int = 2,
    adapters: int = 20,
    width: int = 4,
    hidden: int = 8,
    k: int = 5,
    soft: bool = False,
    layer_norm: bool = False,
    labels: tuple[str, ...] | None = None,
    **words: Any,
) -> Profile:
    generator = np.random.default_rng(seed)

    def mask() -> Any:
        if soft:
            weights = np.exp(generator.standard_normal((blocks, adapters)))
            return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        row = np.arange(adapters) < k
        return generator.permuted(np.tile(row, (blocks, 1)), axis=1)

    def numbers(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    arrays: dict[str, Any] = {}
    if layer_norm:
        arrays |= {"ln_weight": numbers(blocks, width), "ln_bias": numbers(blocks, width)}
    if labels is not None:
        arrays |= {"head_weight": numbers(len(labels), hidden), "head_bias": numbers(len(labels)), "labels": labels}
    return Profile(**{"bank": BANK, "mask_a": mask(), "mask_b": mask(), **arrays, **words})


@pytest.fixture(scope="session")
def make_profile() -> MakeProfile:
    """Another seed, another profile; L=2 N=20 R=4 H=8 unless told."""
    return _make_profile


@pytest.fixture
def redis_client(redis_server: Any) -> Iterator[redis.Redis]:
    with redis.Redis(port=redis_server.port) as client:
        client.flushdb()
        yield client


@pytest.fixture(scope="session")
def acl_rule(project_root: Path) -> list[str]:
    """The words of the command in docs/security.md that gives a server's user its rights; one is ``>PASSWORD``."""
    text = (project_root / "docs" / "security.md").read_text(encoding="utf-8")
    found = re.search(r"^```redis acl\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].split()


@pytest.fixture(scope="session")
def redis_url(redis_server: Any, acl_rule: list[str]) -> str:
    """The shared Redis as a user that has these rights and no others."""
    with redis.Redis(port=redis_server.port) as client:
        client.execute_command(*acl_rule)
    url: str = redis_server.url.replace("redis://", "redis://xpeft:PASSWORD@")
    return url


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return _url(request.param, request, tmp_path)


@pytest.fixture(params=["sqlite", "redis"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that several store objects can open."""
    return _url(request.param, request, tmp_path)


def _url(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if kind == "memory":
        return "memory://"
    if kind == "sqlite":
        return f"sqlite:///{folder}/profiles.db"
    request.getfixturevalue("redis_client")
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[ProfileStore]:
    opened = open_store(store_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def names_of() -> Callable[..., Any]:
    """All names of a tenant, read page by page."""

    async def collect(store: ProfileStore, tenant: str, limit: int, **options: Any) -> list[str]:
        names: list[str] = []
        cursor = None
        while True:
            page = await store.list(tenant, limit=limit, cursor=cursor, **options)
            names += [line.name for line in page.profiles]
            cursor = page.next_cursor
            if cursor is None:
                return names

    return collect


@pytest.fixture
async def two_stores(shared_url: str) -> AsyncIterator[tuple[ProfileStore, ProfileStore]]:
    """Two store objects over one database, as in two servers."""
    first, second = open_store(shared_url), open_store(shared_url)
    await first.open()
    await second.open()
    yield first, second
    await first.close()
    await second.close()


@pytest.fixture
def damage(store: ProfileStore, store_url: str) -> Callable[[ProfileKey], None]:
    """Flips a bit in the middle of a stored record, behind the store's back."""

    def flipped(record: bytes) -> bytes:
        middle = len(record) // 2
        return record[:middle] + bytes([record[middle] ^ 4]) + record[middle + 1 :]

    def damage_memory(key: ProfileKey) -> None:
        profiles = store._profiles  # type: ignore[attr-defined]
        profiles[key] = profiles[key]._replace(record=flipped(profiles[key].record))

    def damage_sqlite(key: ProfileKey) -> None:
        with sqlite3.connect(store_url.removeprefix("sqlite:///")) as connection:
            where = "WHERE tenant = ? AND name = ?"
            (record,) = connection.execute(f"SELECT record FROM profiles {where}", key).fetchone()  # noqa: S608
            connection.execute(f"UPDATE profiles SET record = ? {where}", (flipped(record), *key))  # noqa: S608
        connection.close()

    def damage_redis(key: ProfileKey) -> None:
        with redis.Redis.from_url(store_url) as client:
            name = f"xpeft:{{{key.tenant}}}:profile:{key.name}"
            value = client.get(name)
            assert isinstance(value, bytes)
            client.set(name, value[:48] + flipped(value[48:]))

    return {"memory": damage_memory, "sqlite": damage_sqlite, "redis": damage_redis}[store.scheme]
