"""What is noted of a request to write on its way, and what a profiler sees of its steps."""

from __future__ import annotations

import json
import logging
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from xpeft_profiles import ProfileKey
from xpeft_server.engine.device.profiler import DeviceProfiler
from xpeft_server.engine.errors import ProfileNotFound
from xpeft_server.engine.requests import Journey

PROMPT = tuple(range(10, 22))


async def test_an_answer_has_a_stage_for_all_that_it_waits_for(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    cold, warm, bare = Journey(), Journey(), Journey()
    told = await studio.told(key, PROMPT, 8, journey=cold)
    await studio.told(key, PROMPT, 8, journey=warm)
    await studio.told(None, "w1 w2", 8, journey=bare)
    assert [stage.name for stage in cold.stages] == ["tokenise", "store", "queue", "fill", "prefill", "decode"]
    assert [stage.name for stage in warm.stages] == ["tokenise", "store", "queue", "prefill", "decode"]
    assert [stage.name for stage in bare.stages] == ["tokenise", "queue", "prefill", "decode"]
    stages = {stage.name: stage for stage in cold.stages}
    assert [each.facts for each in (stages["store"], warm.stages[1])] == [
        {"question": "load"},
        {"question": "versions"},
    ]
    assert stages["prefill"].began <= stages["fill"].began <= stages["fill"].ended <= stages["prefill"].ended
    assert stages["queue"].ended == stages["prefill"].began
    assert stages["prefill"].ended == stages["decode"].began < stages["decode"].ended
    assert stages["prefill"].facts == {"tokens": 12, "cached_tokens": 0}
    assert stages["decode"].facts == {"tokens": told.finished.completion_tokens, "preemptions": 0}
    assert (cold.profile_version, bare.profile_version) == (told.started.profile_version, None)
    assert (cold.prompt_tokens, cold.completion_tokens) == (12, told.finished.completion_tokens)


async def test_prompts_of_one_request_share_its_journey(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    journey = Journey()
    answers = [await studio.told(key, PROMPT, new, journey=journey) for new in (2, 3)]
    assert journey.prompt_tokens == 24
    assert journey.completion_tokens == sum(answer.finished.completion_tokens for answer in answers)
    assert [stage.name for stage in journey.stages].count("decode") == 2


async def test_an_answer_that_is_given_up_was_written_until_then(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    journey = Journey()
    async with aclosing(studio.engine.generate(studio.request(key, PROMPT, 150, journey=journey))) as news:
        await anext(news)
    await studio.until(studio.empty)
    assert journey.stages[-1].name == "decode"
    assert 0 < journey.completion_tokens < 150


async def test_an_answer_that_fails_has_the_stages_until_then(open_studio: Any) -> None:
    studio = await open_studio()
    journey = Journey()
    with pytest.raises(ProfileNotFound):
        await studio.told(ProfileKey("t", "p"), PROMPT, journey=journey)
    assert [stage.name for stage in journey.stages] == ["tokenise", "store"]


async def test_a_sequence_that_cannot_be_computed_is_logged_with_the_id_of_its_request(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    studio = await open_studio()

    def fail(chunks: Any) -> Any:
        raise RuntimeError("a bad step")

    monkeypatch.setattr(studio.decoder, "step", fail)
    journey = Journey("r-1")
    with pytest.raises(Exception, match="a bad step"):
        await studio.told(None, PROMPT, journey=journey)
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (error.request_id, error.tenant) == ("r-1", "t")  # type: ignore[attr-defined]
    assert [stage.name for stage in journey.stages] == ["tokenise", "queue", "prefill"]


async def test_steps_are_profiled_like_batches(open_studio: Any, tmp_path: Path) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    path = tmp_path / "trace.json"
    studio.engine._device._profiler = DeviceProfiler(path, 4, skipped=0)
    await studio.told(key, PROMPT, 12)
    await studio.until(path.exists)
    events = json.loads(path.read_bytes())["traceEvents"]
    found = [event["name"] for event in events if event.get("ph") == "X"]
    assert found.count("xpeft::step") == 4
    for each in ("pack", "forward", "vocabulary head", "sample"):
        assert found.count(f"xpeft::{each}") == 4, each
    assert found.count("xpeft::fill") == 1
