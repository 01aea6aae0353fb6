"""What is noted of a request to classify on its way through the engine, however the way ends."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from xpeft_profiles import Profile, ProfileKey
from xpeft_server.engine.errors import EngineError, InternalError, ProfileNotFound, Unavailable
from xpeft_server.engine.requests import ClassifyRequest, Journey, TextInput

MakeProfile = Callable[..., Profile]
KEY = ProfileKey("t", "p")


def request(journey: Journey, *texts: str, key: ProfileKey = KEY) -> ClassifyRequest:
    return ClassifyRequest(key, tuple(map(TextInput, texts or ("w1 w2",))), journey=journey)


def named(journey: Journey) -> list[str]:
    return [stage.name for stage in journey.stages]


def test_a_stage_is_noted_however_it_ends() -> None:
    journey = Journey("r-1")
    before = time.monotonic()
    with pytest.raises(ZeroDivisionError), journey.stage("store", question="load"):
        raise ZeroDivisionError
    (stage,) = journey.stages
    assert before <= stage.began <= stage.ended <= time.monotonic()
    assert (stage.name, stage.facts) == ("store", {"question": "load"})


def test_requests_are_equal_whatever_is_noted_of_them() -> None:
    assert request(Journey("a")) == request(Journey("b"))
    assert "journey" not in repr(request(Journey("a")))


async def test_a_cold_profile_is_loaded_and_filled_and_a_resident_one_only_asked_about(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine()
    put = await store.put(KEY, profile(engine.geometry, 1))
    cold, warm = Journey(), Journey()
    before = time.monotonic()
    await engine.classify(request(cold, "w1 w2", "w3"))
    between = time.monotonic()
    await engine.classify(request(warm))
    assert named(cold) == ["tokenise", "store", "queue", "fill", "forward"]
    assert sorted(named(warm)) == ["forward", "queue", "store", "tokenise"]
    # One after the other, without a gap that overlaps.
    assert all(first.ended <= then.began for first, then in zip(cold.stages, cold.stages[1:], strict=False))
    assert before <= cold.stages[0].began
    assert cold.stages[-1].ended <= between
    facts = {stage.name: dict(stage.facts) for stage in cold.stages}
    assert facts == {
        "tokenise": {"texts": 2},
        "store": {"question": "load"},
        "queue": {},
        "fill": {"profiles": 1},
        "forward": {"texts": 2, "tokens": 7},
    }
    (asked,) = [stage for stage in warm.stages if stage.name == "store"]
    assert asked.facts == {"question": "versions"}
    assert (cold.profile_version, cold.prompt_tokens, cold.completion_tokens) == (put.version, 7, 0)


async def test_a_request_of_many_batches_has_a_forward_for_each(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine(max_batch_tokens=16)
    await store.put(KEY, profile(engine.geometry, 1))
    journey = Journey()
    await engine.classify(request(journey, *(["w1 w2"] * 12)))
    forwards = [stage for stage in journey.stages if stage.name == "forward"]
    assert [forward.facts for forward in forwards] == [{"texts": 4, "tokens": 16}] * 3
    assert named(journey).count("queue") == 1


async def test_who_shares_a_batch_has_its_stages(start_engine: Any, store: Any, profile: MakeProfile) -> None:
    engine = await start_engine()
    keys = [ProfileKey("t", f"p{number}") for number in range(3)]
    for number, key in enumerate(keys):
        await store.put(key, profile(engine.geometry, number))
    # What comes while a batch is computed is the next one.
    free, whole = threading.Event(), engine._classifier.launch
    engine._classifier.launch = lambda inputs: (free.wait(20), whole(inputs))[1]
    journeys = [Journey() for _ in range(3)]
    asked = [asyncio.create_task(engine.classify(request(journeys[0], key=keys[0])))]
    while engine._count_running() == 0:
        await asyncio.sleep(0)
    asked += [
        asyncio.create_task(engine.classify(request(journey, key=key)))
        for journey, key in zip(journeys[1:], keys[1:], strict=True)
    ]
    while engine._count_waiting() < 2:
        await asyncio.sleep(0)
    free.set()
    await asyncio.gather(*asked)
    second, third = ([stage for stage in each.stages if stage.name == "forward"] for each in journeys[1:])
    assert second == third
    assert second[0].facts["texts"] == 2


async def test_a_request_whose_profile_was_replaced_goes_through_the_queue_once_more(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine()
    await store.put(KEY, profile(engine.geometry, 1))
    await engine.classify(request(Journey()))
    put = await store.put(KEY, profile(engine.geometry, 2))
    journey = Journey()
    await engine.classify(request(journey))
    questions = [stage.facts["question"] for stage in journey.stages if stage.name == "store"]
    assert questions == ["versions", "load"]
    assert named(journey).count("queue") == 2
    assert journey.profile_version == put.version


@pytest.mark.parametrize(("down", "error"), [(True, Unavailable), (False, ProfileNotFound)])
async def test_a_request_that_fails_has_the_stages_until_then(
    start_engine: Any, store: Any, down: bool, error: type[EngineError]
) -> None:
    engine = await start_engine()
    store.down = down
    journey = Journey()
    with pytest.raises(error):
        await engine.classify(request(journey))
    assert named(journey) == ["tokenise", "store"]
    assert (journey.profile_version, journey.prompt_tokens) == (None, 0)


async def test_a_request_that_is_withdrawn_in_the_queue_has_waited_there(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine()
    await store.put(KEY, profile(engine.geometry, 1))
    free, whole = threading.Event(), engine._classifier.launch
    engine._classifier.launch = lambda inputs: (free.wait(20), whole(inputs))[1]
    first = asyncio.create_task(engine.classify(request(Journey())))
    while engine._count_running() == 0:
        await asyncio.sleep(0)
    journey = Journey()
    second = asyncio.create_task(engine.classify(request(journey)))
    while not engine._count_waiting():
        await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    free.set()
    await first
    assert named(journey) == ["tokenise", "queue"]
    assert journey.stages[-1].ended > journey.stages[-1].began


async def test_a_text_that_cannot_be_computed_is_logged_with_the_id_of_its_request(
    start_engine: Any, store: Any, profile: MakeProfile, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start_engine()
    await store.put(KEY, profile(engine.geometry, 1))
    whole = engine._classifier.launch

    def logits(inputs: Any) -> Any:
        if any(len(each.text) == 3 for each in inputs):
            raise RuntimeError("a bad text")
        return whole(inputs)

    engine._classifier.launch = logits
    good, bad = Journey("good"), Journey("bad")
    answers = await asyncio.gather(
        engine.classify(request(good)), engine.classify(request(bad, "w1")), return_exceptions=True
    )
    assert isinstance(answers[1], InternalError)
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (error.request_id, error.tenant) == ("bad", "t")  # type: ignore[attr-defined]
    assert good.profile_version is not None
