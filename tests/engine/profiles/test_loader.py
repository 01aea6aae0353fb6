"""Cold profiles read together: how many at once, and what one that cannot be read costs the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from xpeft_profiles import BankGeometry, MemoryStore, Profile, ProfileKey, StoredProfile, StoreUnavailable
from xpeft_server.engine.errors import Unavailable, WrongBank
from xpeft_server.engine.journey import Journey
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.profiles.cache import CachedProfile, ProfileCache
from xpeft_server.engine.profiles.loader import ProfileLoader
from xpeft_server.engine.profiles.store_watch import StoreWatch

GEOMETRY = BankGeometry("sha256:" + "ab" * 32, blocks=2, adapters=8, hidden=256, width=4)
KIB = 1 << 10
MIB = 1 << 20


class NarrowStore(MemoryStore):
    """Sends no more than ``room`` bytes in time, while it answers a ping.

    ``rounds``, ``sizes``: the names that it was asked for each time, and the bytes of their records.
    """

    def __init__(self) -> None:
        super().__init__()
        self.room = 1 << 40
        self.sizes: list[int] = []
        self.rounds: list[list[str]] = []
        self.pings = 0

    async def get_many(self, keys: Sequence[ProfileKey]) -> list[StoredProfile | None]:
        self.rounds.append([key.name for key in keys])
        stored = await super().get_many(keys)
        self.sizes.append(sum(len(each.record) for each in stored if each is not None))
        if self.sizes[-1] > self.room:
            before = self.pings
            while self.pings == before:
                await asyncio.sleep(0)
            raise StoreUnavailable("it takes too long")
        return stored

    async def ping(self) -> None:
        self.pings += 1


@pytest.fixture
def store() -> NarrowStore:
    return NarrowStore()


@pytest.fixture
async def watch(store: NarrowStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StoreWatch]:
    monkeypatch.setattr("xpeft_server.engine.profiles.store_watch.INTERVAL", 0.01)
    watch = StoreWatch(store, Metrics())
    await watch.start()
    yield watch
    await watch.stop()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def load(store: NarrowStore, watch: StoreWatch, metrics: Metrics) -> Callable[..., asyncio.Task[CachedProfile]]:
    loader = ProfileLoader(store, geometry=GEOMETRY, cache=ProfileCache(1 << 30, metrics), watch=watch, metrics=metrics)
    return lambda tenant, name: asyncio.create_task(loader.load(ProfileKey(tenant, name), Journey("x")))


async def put(store: NarrowStore, tenant: str, *names: str, size: int = KIB, bank: str = GEOMETRY.fingerprint) -> None:
    """Profiles of about ``size`` bytes."""
    mask = np.eye(2, 8, dtype=bool)
    labels = tuple(map(str, range(max(1, size // 520))))
    head = np.ones((len(labels), GEOMETRY.hidden), np.float16)
    profile = Profile(bank=bank, mask_a=mask, mask_b=mask, head_weight=head, labels=labels)
    for name in names:
        await store.put(ProfileKey(tenant, name), profile)


def numbered(letter: str, count: int) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]


async def test_one_tenants_many_large_profiles_leave_another_one_its_place(store: NarrowStore, load: Any) -> None:
    large, small = numbered("l", 100), numbered("s", 3)
    await put(store, "large", *large, size=MIB)
    await put(store, "small", *small)
    loading = [load("large", name) for name in large]
    for name in small:
        before = len(store.rounds)
        assert (await load("small", name)).key.name == name
        # It is in the next round, and by then another one may have begun.
        assert len(store.rounds) <= before + 2
    assert not loading[-1].done()
    for task, name in zip(loading, large, strict=True):
        assert (await task).key.name == name
    assert len(store.rounds[0]) == 32
    assert max(store.sizes[1:]) < 10 * MIB


async def test_many_small_profiles_are_read_by_few_questions(store: NarrowStore, load: Any) -> None:
    names = numbered("s", 1000)
    await put(store, "small", *names)
    await asyncio.gather(*(load("small", name) for name in names))
    assert len(store.rounds) == 10
    assert max(map(len, store.rounds)) == 128


async def test_what_is_too_much_for_one_answer_is_asked_for_in_parts_and_the_store_stays_up(
    store: NarrowStore, watch: StoreWatch, load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    names = numbered("l", 24)
    await put(store, "large", *names, size=100 * KIB)
    store.room = 320 * KIB
    with caplog.at_level(logging.INFO):
        loaded = await asyncio.gather(*(load("large", name) for name in names))
    assert [each.key.name for each in loaded] == names
    assert watch.up
    assert [len(each) for each in store.rounds] == [24, *[3] * 8]
    (line,) = [record.message for record in caplog.records]
    assert line == "24 profiles could not be read of a store that answers: it takes too long"


async def test_a_profile_that_cannot_be_read_at_all_fails_alone(
    store: NarrowStore, watch: StoreWatch, load: Any
) -> None:
    await put(store, "huge", "h", size=MIB)
    await put(store, "small", *numbered("s", 9))
    store.room = MIB // 2
    huge = load("huge", "h")
    loaded = await asyncio.gather(*(load("small", name) for name in numbered("s", 9)))
    assert [each.key.name for each in loaded] == numbered("s", 9)
    with pytest.raises(Unavailable, match="it takes too long"):
        await huge
    assert watch.up


async def test_what_nobody_waits_for_any_more_is_not_read(store: NarrowStore, load: Any) -> None:
    names = numbered("s", 200)
    await put(store, "small", *names)
    loading = [load("small", name) for name in names]
    await asyncio.sleep(0)
    for task in loading[:-1]:
        task.cancel()
    assert (await loading[-1]).key.name == names[-1]
    assert sum(map(len, store.rounds)) <= 33


async def test_another_bank_is_told_once_however_many_profiles_were_made_for_it_and_each_is_counted(
    store: NarrowStore, load: Any, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    old, older = "sha256:" + "cd" * 32, "sha256:" + "ef" * 32
    await put(store, "t", "one", "two", bank=old)
    await put(store, "t", "three", bank=older)
    for name in ("one", "two", "three", "one"):
        with pytest.raises(WrongBank):
            await load("t", name)
    assert "xpeft_profile_wrong_bank_total 4.0" in metrics.render().decode().splitlines()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "WARNING",
            f"profile {name!r} of tenant 't' is answered with 409, as will be every other one of its bank: the profile"
            f" was made for bank {bank!r}, this server has {GEOMETRY.fingerprint}",
        )
        for name, bank in (("one", old), ("three", older))
    ]
