"""An engine whose store is away for long, or damaged in places."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from xpeft_profiles import Profile, ProfileKey, StoredProfile
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.errors import DamagedProfile, InternalError, Unavailable
from xpeft_server.engine.requests import ClassifyAnswer, ClassifyRequest, TextInput

MakeProfile = Callable[..., Profile]


def ask(engine: Engine, name: str) -> Any:
    return engine.classify(ClassifyRequest(ProfileKey("t", name), (TextInput("w1 w2"),)))


async def ask_all(engine: Engine, *names: str) -> list[ClassifyAnswer | BaseException]:
    return await asyncio.gather(*(ask(engine, name) for name in names), return_exceptions=True)


async def test_nothing_is_left_of_thousands_of_requests_during_an_outage(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine()
    for name in ("resident", "cold"):
        await store.put(ProfileKey("t", name), profile(engine.geometry, 1))
    await ask(engine, "resident")
    store.down = True
    await ask_all(engine, *["resident", "cold"] * 50)
    gc.collect()
    tasks, objects = len(asyncio.all_tasks()), len(gc.get_objects())
    for _ in range(40):
        answers = await ask_all(engine, *["resident", "cold"] * 25)
        assert all(isinstance(answer, ClassifyAnswer) and not answer.verified for answer in answers[::2])
        assert all(isinstance(answer, Unavailable) for answer in answers[1::2])
    del answers
    gc.collect()
    assert engine.metrics.unverified_answers._value.get() == 50 + 40 * 25
    # Each request that left something behind would leave 2,000 of it.
    assert len(asyncio.all_tasks()) <= tasks + 2
    assert len(gc.get_objects()) < objects + 500
    assert engine._permits.texts == engine._permits.tokens == 0
    store.down = False
    async with asyncio.timeout(20):
        while not engine.status().ready:
            await asyncio.sleep(0.01)
    answers = await ask_all(engine, "resident", "cold")
    assert all(isinstance(answer, ClassifyAnswer) and answer.verified for answer in answers)


async def test_questions_that_a_store_fails_in_a_way_of_its_own_do_not_end_the_engine(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    for name in ("resident", "cold"):
        await store.put(ProfileKey("t", name), profile(engine.geometry, 1))
    await ask(engine, "resident")

    async def broken(*_: Any) -> Any:
        raise RuntimeError("the handler is closed")

    monkeypatch.setattr(store, "versions", broken)
    monkeypatch.setattr(store, "get_many", broken)
    resident, cold = await ask_all(engine, "resident", "cold")
    assert isinstance(resident, ClassifyAnswer)
    assert not resident.verified
    assert isinstance(cold, Unavailable)
    assert engine.status().checks["engine"] == "ok"


async def test_a_damaged_profile_is_counted_each_time_and_logged_once_a_version(
    start_engine: Any, store: Any, profile: MakeProfile, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start_engine()
    for seed in (1, 2):
        await store.put(ProfileKey("t", "p"), profile(engine.geometry, seed))
        stored = store._profiles[ProfileKey("t", "p")]
        store._profiles[ProfileKey("t", "p")] = stored._replace(record=stored.record[:-1] + b"\0")
        for _ in range(3):
            with pytest.raises(DamagedProfile, match="'p' is damaged in the store"):
                await ask(engine, "p")
        (line,) = [record.message for record in caplog.records if stored.version in record.message]
        assert line.startswith(f"profile 'p' of tenant 't', version '{stored.version}', is damaged: ")
    assert "xpeft_profile_damaged_total 6.0" in engine.metrics.render().decode().splitlines()


async def test_a_record_that_breaks_the_decoder_fails_alone_and_keeps_nobody_waiting(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    for seed, name in enumerate(("odd", "even")):
        await store.put(ProfileKey("t", name), profile(engine.geometry, seed))
    odd, decode = store._profiles[ProfileKey("t", "odd")].version, StoredProfile.decode

    def breaks(stored: StoredProfile) -> Profile:
        if stored.version == odd:
            raise ZeroDivisionError("a bug")
        return decode(stored)

    monkeypatch.setattr(StoredProfile, "decode", breaks)
    async with asyncio.timeout(20):
        first, second = await ask_all(engine, "odd", "even")
    assert isinstance(first, InternalError)
    assert isinstance(second, ClassifyAnswer)


async def test_a_version_that_the_store_has_lost_is_read_again_before_it_is_called_absent(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    await store.put(ProfileKey("t", "p"), profile(engine.geometry, 1))
    await ask(engine, "p")

    async def none(keys: Any) -> list[None]:
        return [None] * len(keys)

    monkeypatch.setattr(store, "versions", none)
    for _ in range(3):
        assert (await ask(engine, "p")).verified
