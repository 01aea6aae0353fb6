"""An answer of the store counts for requests that came before the question, not for all that came before the answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from xpeft_profiles import Profile, ProfileKey
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.errors import ProfileHasNoHead, ProfileNotFound
from xpeft_server.engine.requests import ClassifyAnswer, ClassifyRequest, Journey, TextInput

MakeProfile = Callable[..., Profile]
KEY = ProfileKey("t", "p")


def ask(engine: Engine) -> asyncio.Task[ClassifyAnswer]:
    return asyncio.create_task(engine.classify(ClassifyRequest(KEY, (TextInput("w1 w2"),))))


class Late:
    """A question of the store whose first answer, true when it was asked, is held back."""

    def __init__(self, question: Callable[..., Any]) -> None:
        self._question = question
        self._held = False
        self.asked = asyncio.Event()
        self.arrives = asyncio.Event()

    async def __call__(self, keys: Any) -> Any:
        answer = await self._question(keys)
        if not self._held:
            self._held = True
            self.asked.set()
            await self.arrives.wait()
        return answer


async def test_a_profile_that_had_no_head_is_asked_about_before_it_is_refused_again(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine()
    await store.put(KEY, profile(engine.geometry, 1, labels=None))
    for _ in range(2):
        with pytest.raises(ProfileHasNoHead):
            await ask(engine)
    newer = (await store.put(KEY, profile(engine.geometry, 2))).version
    assert (await ask(engine)).profile_version == newer
    await store.put(KEY, profile(engine.geometry, 1, labels=None))
    with pytest.raises(ProfileHasNoHead):
        await ask(engine)
    await store.delete(KEY)
    with pytest.raises(ProfileNotFound):
        await ask(engine)


async def test_a_version_that_was_asked_for_before_a_request_came_does_not_count_for_it(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    engine = await start_engine()
    await store.put(KEY, profile(engine.geometry, 1))
    await ask(engine)
    versions, whole, free = Late(store.versions), engine._classifier.launch, threading.Event()

    def logits(inputs: Any) -> Any:
        assert free.wait(20)
        return whole(inputs)

    monkeypatch.setattr(store, "versions", versions)
    monkeypatch.setattr(engine._classifier, "launch", logits)
    try:
        first = ask(engine)
        await versions.asked.wait()
        newer = (await store.put(KEY, profile(engine.geometry, 2))).version
        second = ask(engine)
        await until(lambda: len(engine._classification._tickets) == 2)
        asked_at = engine._cache.get(KEY).asked_at  # type: ignore[union-attr]
        versions.arrives.set()
        await until(lambda: engine._cache.get(KEY).asked_at > asked_at)  # type: ignore[union-attr]
    finally:
        free.set()
    assert (await second).profile_version == newer
    assert (await first).verified


async def test_a_record_that_was_asked_for_before_a_request_came_does_not_count_for_it(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    engine = await start_engine()
    await store.put(KEY, profile(engine.geometry, 1))
    records, encode, free = Late(store.get_many), engine._tokenizer.encode, asyncio.Event()
    monkeypatch.setattr(store, "get_many", records)
    first = ask(engine)
    await records.asked.wait()

    async def late(request: Any) -> Any:
        texts = await encode(request)
        await free.wait()
        return texts

    monkeypatch.setattr(engine._tokenizer, "encode", late)
    newer = (await store.put(KEY, profile(engine.geometry, 2))).version
    second = ask(engine)
    await until(lambda: engine._permits.texts == 2)
    records.arrives.set()
    await first
    free.set()
    assert (await second).profile_version == newer


async def test_a_version_that_was_asked_for_before_a_prompt_came_does_not_count_for_it(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    await store.put(KEY, profile(engine.geometry, 1))
    await ask(engine)
    versions, current = Late(store.versions), engine._loader.current
    monkeypatch.setattr(store, "versions", versions)
    first = asyncio.create_task(current(KEY, time.monotonic(), Journey("first")))
    await versions.asked.wait()
    newer = (await store.put(KEY, profile(engine.geometry, 2))).version
    came = time.monotonic()
    versions.arrives.set()
    await first
    assert (await current(KEY, came, Journey("second"))).version == newer
