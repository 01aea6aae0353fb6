"""An engine that is elsewhere, in processes that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from xpeft_ray.remote_engine import TRIES, RemoteEngine
from xpeft_ray.replicas import ReplicaLost
from xpeft_server.engine.errors import LimitReached, ProfileNotFound, Unavailable
from xpeft_server.engine.requests import ClassifyRequest, Finished, GenerateRequest, Piece, Started

LOST = ReplicaLost("the process died")
NextRound = Callable[[], Awaitable[None]]


async def told(engine: RemoteEngine, prompt: GenerateRequest, seen: list[Any] | None = None) -> list[Any]:
    """The news, which are in ``seen`` even if an error follows."""
    seen = [] if seen is None else seen
    async with aclosing(engine.generate(prompt)) as news:
        async for each in news:
            seen.append(each)
    return seen


async def test_a_request_whose_replica_dies_is_answered_by_another(
    engine: RemoteEngine, replicas: Any, asked: ClassifyRequest
) -> None:
    replicas.faults = [LOST, LOST]
    assert (await engine.classify(asked)).labels == ("refund", "baggage")
    assert len(replicas.seen) == 3


async def test_a_request_that_loses_one_replica_after_the_other_fails_and_says_so(
    engine: RemoteEngine, replicas: Any, asked: ClassifyRequest
) -> None:
    replicas.faults = [LOST] * TRIES
    with pytest.raises(Unavailable, match="3 replicas went away"):
        await engine.classify(asked)
    assert len(replicas.seen) == TRIES


async def test_a_refusal_comes_back_as_itself_and_is_not_tried_elsewhere(
    engine: RemoteEngine, replicas: Any, asked: ClassifyRequest
) -> None:
    replicas.faults = [LimitReached("request_rate", "too many", retry_after=3.0)]
    with pytest.raises(LimitReached, match="too many") as refused:
        await engine.classify(asked)
    assert (refused.value.retry_after, refused.value.reason) == (3.0, "request_rate")
    assert len(replicas.seen) == 1


async def test_a_text_that_was_not_begun_is_written_by_another_replica(
    engine: RemoteEngine, replicas: Any, prompt: GenerateRequest
) -> None:
    replicas.faults = [LOST]
    news = await told(engine, prompt)
    assert [type(each) for each in news] == [Started, Piece, Piece, Finished]
    assert len(replicas.seen) == 2


async def test_a_text_that_was_begun_ends_with_an_error_and_is_not_begun_anew(
    engine: RemoteEngine, replicas: Any, prompt: GenerateRequest
) -> None:
    replicas.faults, replicas.break_after = [LOST], 2
    seen: list[Any] = []
    with pytest.raises(Unavailable, match="went away"):
        await told(engine, prompt, seen)
    assert [type(each) for each in seen] == [Started, Piece]
    assert len(replicas.seen) == 1


async def test_a_refusal_amid_the_news_is_raised(engine: RemoteEngine, replicas: Any, prompt: GenerateRequest) -> None:
    replicas.faults = [ProfileNotFound("profile 'desk' does not exist", param="profile")]
    with pytest.raises(ProfileNotFound, match="desk"):
        await told(engine, prompt)


async def test_what_the_replica_noted_is_in_the_callers_journey(
    engine: RemoteEngine, replicas: Any, asked: ClassifyRequest, prompt: GenerateRequest
) -> None:
    await engine.classify(asked)
    assert asked.journey.prompt_tokens == 7
    assert replicas.seen[0].journey is not asked.journey
    await told(engine, prompt)
    assert prompt.journey.completion_tokens == 2


async def test_a_caller_that_leaves_withdraws_its_request(
    engine: RemoteEngine, replicas: Any, asked: ClassifyRequest, prompt: GenerateRequest
) -> None:
    replicas.hold = asyncio.Event()
    for call in (engine.classify(asked), told(engine, prompt)):
        replicas.waiting.clear()
        waiting = asyncio.create_task(call)
        async with asyncio.timeout(10):
            await replicas.waiting.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
    assert replicas.withdrawn == 2


async def test_who_waits_is_told_when_no_replica_is_heard_of_any_more(
    engine: RemoteEngine, replicas: Any, asked: ClassifyRequest, prompt: GenerateRequest
) -> None:
    replicas.hold, replicas.told = asyncio.Event(), []
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(engine.classify(asked), told(engine, prompt), return_exceptions=True)
    assert [type(each) for each in outcomes] == [Unavailable, Unavailable]
    assert replicas.withdrawn == 2
    with pytest.raises(Unavailable, match="no engine replica has answered"):
        engine.check_room("acme")
    assert len(replicas.seen) == 2


async def test_a_replica_that_comes_back_is_asked_again(
    engine: RemoteEngine, replicas: Any, asked: ClassifyRequest, reported: Any, next_round: NextRound
) -> None:
    replicas.told = []
    async with asyncio.timeout(10):
        while engine.status().ready:
            await next_round()
    assert engine.status().checks["engine"] == "no replica answers"
    replicas.told = [reported("two")]
    await next_round()
    assert engine.status().ready
    assert (await engine.classify(asked)).prompt_tokens == 7


async def test_ready_means_that_one_replica_is(
    engine: RemoteEngine, replicas: Any, reported: Any, next_round: NextRound
) -> None:
    replicas.told = [reported("one", store="no answer"), reported("two")]
    await next_round()
    assert engine.status().ready
    replicas.told = [reported("one", store="no answer")]
    await next_round()
    assert engine.status().checks == {"engine": "store: no answer", "store": "ok"}


async def test_it_starts_with_the_first_report(start_engine: Any, replicas: Any, reported: Any) -> None:
    replicas.told = []
    starting = asyncio.create_task(start_engine())
    async with asyncio.timeout(10):
        while not replicas.rounds:
            await asyncio.sleep(0)
    assert not starting.done()
    replicas.told = [reported()]
    async with asyncio.timeout(10):
        assert (await starting).info.plm == "tiny"


async def test_another_bank_counts_when_the_last_replica_of_the_old_one_has_gone(
    start_engine: Any, replicas: Any, reported: Any, next_round: NextRound
) -> None:
    built: list[str] = []
    engine = await start_engine(on_bank=lambda: built.append(engine.geometry.fingerprint))
    old = engine.geometry.fingerprint
    replicas.told = [reported("two", bank="ef"), reported("one")]
    await next_round()
    assert (engine.geometry.fingerprint, built) == (old, [])
    replicas.told = [reported("two", bank="ef")]
    await next_round()
    assert built == ["sha256:" + "ef" * 32]
