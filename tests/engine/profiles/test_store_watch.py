from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from xpeft_profiles import MemoryStore, StoreUnavailable
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.profiles import store_watch
from xpeft_server.engine.profiles.store_watch import StoreWatch


class Store(MemoryStore):
    """Answers, fails, or is silent, as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self.speaks = asyncio.Event()
        self.speaks.set()
        self.pings = 0

    async def answer(self) -> str:
        await self.speaks.wait()
        if self.failure is not None:
            raise self.failure
        return "answer"

    async def ping(self) -> None:
        self.pings += 1
        await self.answer()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is looked at where there is a reason to, and else at no time that a test could wait for."""
    monkeypatch.setattr(store_watch, "INTERVAL", 3600.0)


@pytest.fixture
async def watch(store: Store) -> AsyncIterator[StoreWatch]:
    watch = StoreWatch(store, Metrics())
    await watch.start()
    yield watch
    await watch.stop()


async def test_a_question_that_fails_is_told_and_the_next_one_is_not_sent(watch: StoreWatch, store: Store) -> None:
    assert await watch.ask(store.answer) == "answer"
    store.failure = StoreUnavailable("the store is down")
    with pytest.raises(StoreUnavailable, match="the store is down"):
        await watch.ask(store.answer)
    assert (watch.up, watch.problem) == (False, "the store is down")

    async def never() -> None:
        pytest.fail("nobody should ask")

    with pytest.raises(StoreUnavailable, match="the store is down"):
        await watch.ask(never)


@pytest.mark.usefixtures("rarely")
async def test_a_store_that_answered_others_meanwhile_is_not_away(watch: StoreWatch, store: Store, until: Any) -> None:
    given_up = asyncio.Event()

    async def too_much() -> None:
        await given_up.wait()
        raise StoreUnavailable("it takes too long")

    question = asyncio.create_task(watch.ask(too_much))
    await asyncio.sleep(0)
    assert await watch.ask(store.answer) == "answer"
    pings = store.pings
    given_up.set()
    with pytest.raises(StoreUnavailable, match="it takes too long"):
        await question
    assert watch.up
    await until(lambda: store.pings > pings)


@pytest.mark.usefixtures("rarely")
async def test_after_one_failed_question_the_store_is_looked_at_soon(
    watch: StoreWatch, store: Store, until: Any
) -> None:
    store.failure = StoreUnavailable("one connection was cut")
    with pytest.raises(StoreUnavailable):
        await watch.ask(store.answer)
    store.failure = None
    await until(lambda: watch.up)
    assert await watch.ask(store.answer) == "answer"


async def test_a_store_that_stays_away_is_asked_ever_more_rarely(
    watch: StoreWatch, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    wait = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await wait(0)

    monkeypatch.setattr(store_watch.asyncio, "sleep", sleep)
    store.failure = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await watch.ask(store.answer)
    async with asyncio.timeout(20):
        while len(pauses) < 8:
            await wait(0.001)
    assert pauses[:8] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


async def test_a_silent_store_is_given_up_in_time_by_questions_and_pings(
    watch: StoreWatch, store: Store, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    monkeypatch.setattr(store_watch, "PATIENCE", 0.02)
    store.speaks.clear()
    with pytest.raises(StoreUnavailable, match=r"no answer within 0\.02 s"):
        await watch.ask(store.answer)
    pings = store.pings
    await until(lambda: store.pings > pings + 1)
    assert not watch.up
    store.speaks.set()
    await until(lambda: watch.up)


async def test_a_store_that_fails_in_a_way_of_its_own_is_away_too_and_the_watch_goes_on(
    watch: StoreWatch, store: Store, caplog: pytest.LogCaptureFixture, until: Any
) -> None:
    store.failure = ZeroDivisionError("a bug")
    with pytest.raises(StoreUnavailable, match="a bug"):
        await watch.ask(store.answer)
    pings = store.pings
    await until(lambda: store.pings > pings)
    assert "failed in a way of its own" in caplog.text
    store.failure = None
    await until(lambda: watch.up)


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends(
    watch: StoreWatch, store: Store, caplog: pytest.LogCaptureFixture, until: Any
) -> None:
    caplog.set_level(logging.INFO)
    store.failure = StoreUnavailable("away")
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await watch.ask(store.answer)
    pings = store.pings
    await until(lambda: store.pings > pings + 1)
    store.failure = None
    await until(lambda: watch.up)
    assert [record.message for record in caplog.records] == [
        "the profile store does not answer: away",
        "the profile store answers",
    ]
