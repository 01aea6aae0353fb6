"""Many sequences at a time: fairness, room, and one that fails alone."""

from __future__ import annotations

import asyncio
import os
import random
import re
from typing import Any

import pytest
import torch

from xpeft_server.engine.errors import EngineError, InternalError, Unavailable, WrongBank
from xpeft_server.engine.requests import SamplingRule
from xpeft_server.model.kv.cache import KvCache, KvPool
from xpeft_server.tenant_limits import TenantTable

PROMPT = tuple(range(10, 22))
WAVES = 20 if os.environ.get("NIGHTLY") == "1" else 8


async def test_a_short_prompt_gets_its_first_token_within_five_steps_of_64_writers(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = await open_studio(max_sequences=100)
    keys = [await studio.put(f"p{number}", number) for number in range(16)]
    writers = [asyncio.create_task(studio.told(keys[number % 16], PROMPT, 150)) for number in range(64)]
    await studio.until(lambda: len(studio.engine._generation.generator._running) == 64)
    steps = 0
    step = studio.decoder.step

    def counted(chunks: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(chunks)

    monkeypatch.setattr(studio.decoder, "step", counted)
    news = studio.engine.generate(studio.request(keys[0], PROMPT, 1))
    await anext(news)
    assert 1 <= steps <= 5
    await news.aclose()
    assert len(studio.engine._generation.generator._running) >= 64
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)


async def test_a_short_prompt_is_read_before_the_long_ones_of_a_tenant_that_had_more_than_its_share(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = await open_studio(max_batch_tokens=16)
    loud, quiet = await studio.put("p", 1, tenant="loud"), await studio.put("p", 2, tenant="quiet")
    alone = await studio.told(loud, PROMPT * 12, 8)
    readers = [asyncio.create_task(studio.told(loud, PROMPT * 12, 8)) for _ in range(20)]
    await studio.until(lambda: len(studio.engine._generation.generator._running) == 20)
    steps = 0
    step = studio.decoder.step

    def counted(chunks: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(chunks)

    monkeypatch.setattr(studio.decoder, "step", counted)
    await studio.told(quiet, PROMPT, 1)
    assert steps <= 5
    assert {told.text for told in await asyncio.gather(*readers)} == {alone.text}


async def test_a_tenant_with_a_hundred_prompts_does_not_keep_out_another_with_one(open_studio: Any) -> None:
    studio = await open_studio(max_sequences=2)
    loud, quiet = await studio.put("p", 1, tenant="loud"), await studio.put("p", 2, tenant="quiet")
    over: list[str] = []

    async def ask(key: Any, new: int) -> None:
        await studio.told(key, PROMPT * 4, new)
        over.append(key.tenant)

    crowd = [asyncio.create_task(ask(loud, 4)) for _ in range(100)]
    await studio.until(lambda: studio.decoder.cache.used > 0)
    await ask(quiet, 4)
    assert over.count("loud") < 40
    await asyncio.gather(*crowd)


@pytest.mark.parametrize("scarce", ["max_sequences", "kv_tokens"])
async def test_a_tenant_that_holds_all_room_makes_way_for_another_and_loses_nothing(
    open_studio: Any, scarce: str
) -> None:
    room = {"max_sequences": {"max_sequences": 8}, "kv_tokens": {"kv_tokens": 2048}}[scarce]
    full = 8 if scarce == "max_sequences" else 7
    studio = await open_studio(**room)
    loud, quiet = await studio.put("p", 1, tenant="loud"), await studio.put("p", 2, tenant="quiet")
    alone = await studio.told(loud, PROMPT, 150)
    crowd = [asyncio.create_task(studio.told(loud, PROMPT, 150)) for _ in range(16)]
    generation = studio.engine._generation
    await studio.until(lambda: len(generation.generator._running) >= full and bool(generation._waiting))
    preempted = studio.engine.metrics.preemptions._value.get
    before, over = preempted(), sum(task.done() for task in crowd)
    await studio.told(quiet, PROMPT, 1)
    assert sum(task.done() for task in crowd) == over
    # Rows are short at first, so that there may be room for one more.
    assert preempted() > before or scarce == "kv_tokens"
    assert {told.text for told in await asyncio.gather(*crowd)} == {alone.text}
    await studio.until(studio.empty)


async def test_a_tenant_whose_profiles_hold_all_slots_makes_way_for_another_and_loses_nothing(open_studio: Any) -> None:
    studio = await open_studio(slots=4)
    loud = [await studio.put(f"p{number}", number, tenant="loud") for number in range(4)]
    quiet = await studio.put("p", 9, tenant="quiet")
    alone = [(await studio.told(key, PROMPT, 150)).text for key in loud]
    crowd = [asyncio.create_task(studio.told(key, PROMPT, 150)) for key in loud * 2]
    running = studio.engine._generation.generator._running
    await studio.until(lambda: len(running) == 8 and all(each.generated > 10 for each in running))
    await studio.told(quiet, PROMPT, 1)
    assert not any(task.done() for task in crowd)
    assert [told.text for told in await asyncio.gather(*crowd)] == alone * 2
    await studio.until(studio.empty)


async def test_who_gets_the_room_of_all_others_gets_a_slot_too(open_studio: Any) -> None:
    studio = await open_studio(slots=1, max_sequences=1)
    loud, quiet = await studio.put("p", 1, tenant="loud"), await studio.put("p", 2, tenant="quiet")
    alone = (await studio.told(loud, PROMPT, 150)).text
    crowd = [asyncio.create_task(studio.told(loud, PROMPT, 150)) for _ in range(2)]
    running = studio.engine._generation.generator._running
    await studio.until(lambda: len(running) == 1 and running[0].generated > 10)
    await studio.told(quiet, PROMPT, 1)
    assert not any(task.done() for task in crowd)
    assert [told.text for told in await asyncio.gather(*crowd)] == [alone] * 2
    await studio.until(studio.empty)


async def test_a_cache_that_nobody_has_used_yet_is_free(open_studio: Any) -> None:
    studio = await open_studio(kv_tokens=1024)
    gauges = studio.engine.metrics.kv_tokens
    assert [gauges[state]._value.get() for state in ("used", "free")] == [0, 1024]


async def test_tenants_who_take_room_from_each_other_write_for_what_they_read(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In room for one of them, where reading a prompt takes longer than what was had is remembered."""
    studio = await open_studio(kv_tokens=255, max_batch_tokens=16, tenants=TenantTable())
    keys = [await studio.put("p", number, tenant=f"t{number}") for number in range(2)]
    now = 0.0
    shares = studio.engine._generation.generator._shares
    monkeypatch.setattr(shares, "_clock", lambda: now)
    monkeypatch.setattr(shares, "_start", 0.0)
    step = studio.decoder.step

    def slow(chunks: Any) -> Any:
        nonlocal now
        now += 1.5
        return step(chunks)

    monkeypatch.setattr(studio.decoder, "step", slow)
    prompt = PROMPT * 7
    told = await asyncio.gather(*(studio.told(keys[number % 2], prompt, 20) for number in range(4)))
    written = sum(each.finished.completion_tokens for each in told)
    assert 0 < studio.engine.metrics.preemptions._value.get() <= 8 * written / len(prompt)


async def test_where_the_cache_is_full_who_came_first_finishes_first(open_studio: Any) -> None:
    studio = await open_studio(kv_tokens=256)
    key = await studio.put("p", 1)
    over: list[int] = []

    async def ask(number: int) -> None:
        await studio.told(key, PROMPT, 100, sampling=SamplingRule(temperature=1.0), seed=number)
        over.append(number)

    tasks = []
    for number in range(4):
        tasks.append(asyncio.create_task(ask(number)))
        await studio.until(lambda number=number: len(studio.engine._generation._sequences) == number + 1)
    await asyncio.gather(*tasks)
    assert studio.engine.metrics.preemptions._value.get() > 0
    assert over.index(0) < over.index(3)
    await studio.until(studio.empty)


async def test_who_waits_for_room_makes_no_profile_resident(open_studio: Any) -> None:
    studio = await open_studio(kv_tokens=256)
    keys = [await studio.put(f"p{number}", number) for number in range(2)]
    first = studio.engine.generate(studio.request(keys[0], PROMPT * 8, 90))
    await anext(first)
    waiting = asyncio.create_task(studio.told(keys[1], PROMPT * 6, 5))
    generation = studio.engine._generation
    await studio.until(lambda: bool(generation.generator._waiting))
    tokens = studio.engine.metrics.generation_tokens._value.get
    then = tokens()
    await studio.until(lambda: tokens() > then + 3)
    assert list(studio.engine._device._launcher._slots._placed) == [(await studio.store.versions(keys))[0]]
    await first.aclose()
    assert (await waiting).finished.completion_tokens > 0


async def test_a_profile_is_asked_for_when_a_sequence_is_taken_in_and_not_at_every_step(open_studio: Any) -> None:
    studio = await open_studio(slots=2)
    keys = [await studio.put(f"p{number}", number) for number in range(3)]
    metrics = studio.engine.metrics

    def counted() -> tuple[float, ...]:
        families = metrics.cache_misses, metrics.cache_hits, metrics.cache_evictions
        return tuple(family["device"]._value.get() for family in families)

    first = studio.engine.generate(studio.request(keys[0], PROMPT, 100))
    await anext(first)
    await studio.told(keys[0], PROMPT, 20)
    await studio.told(keys[1], PROMPT, 20)
    assert counted() == (2, 1, 0)
    await studio.told(keys[2], PROMPT, 20)
    assert counted() == (3, 1, 1)
    await first.aclose()


async def test_more_profiles_than_slots_wait_for_one_another(open_studio: Any) -> None:
    studio = await open_studio(slots=3)
    keys = [await studio.put(f"p{number}", number) for number in range(10)]
    answers = await asyncio.gather(*(studio.told(key, PROMPT, 20, sampling=SamplingRule(logprobs=0)) for key in keys))
    for key, told in zip(keys, answers, strict=True):
        assert told.ids == studio.original.generate(PROMPT, studio.profiles[key], 20)[: len(told.ids)]


async def test_a_head_wider_than_the_server_holds_is_refused_and_others_go_on(open_studio: Any) -> None:
    studio = await open_studio()
    good, wide = await studio.put("good", 1), await studio.put("wide", 2, labels=600)
    answers = await asyncio.gather(
        *(studio.told(key, PROMPT, 20) for key in (good, wide, good)), return_exceptions=True
    )
    assert isinstance(answers[1], WrongBank)
    assert answers[0].text == answers[2].text != ""


async def test_a_head_wider_than_the_server_holds_is_refused_while_others_write(open_studio: Any) -> None:
    studio = await open_studio()
    good, wide = await studio.put("good", 1), await studio.put("wide", 2, labels=600)
    writer = asyncio.create_task(studio.told(good, PROMPT, 150))
    await studio.until(lambda: len(studio.engine._generation.generator._running) == 1)
    with pytest.raises(WrongBank):
        await studio.told(wide, PROMPT, 1)
    assert not writer.done()
    await writer


@pytest.mark.parametrize("victim", [0, 3, 7])
async def test_a_sequence_whose_numbers_are_not_finite_ends_alone(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    studio = await open_studio()
    keys = [await studio.put(f"p{number}", number) for number in range(8)]
    expected = [(await studio.told(key, PROMPT, 20)).text for key in keys]
    step = studio.decoder.step
    (version,) = await studio.store.versions([keys[victim]])

    @torch.inference_mode()
    def spoiled(chunks: Any) -> Any:
        stepped = step(chunks)
        slots = [chunk.slot for chunk in chunks if chunk.asks]
        placed = studio.engine._device._launcher._slots._placed.get(version)
        if placed is not None and placed.slot in slots:
            stepped.logits[slots.index(placed.slot)] = torch.nan
        return stepped

    monkeypatch.setattr(studio.decoder, "step", spoiled)
    answers = await asyncio.gather(*(studio.told(key, PROMPT, 20) for key in keys), return_exceptions=True)
    assert isinstance(answers[victim], InternalError)
    assert "not finite" in str(answers[victim])
    others = [number for number in range(8) if number != victim]
    assert [answers[number].text for number in others] == [expected[number] for number in others]
    await studio.until(studio.empty)


async def test_a_sequence_that_cannot_be_computed_ends_alone_and_the_others_lose_nothing(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = await open_studio()
    keys = [await studio.put(f"p{number}", number) for number in range(9)]
    prompts = [tuple(range(10 + number, 22)) for number in range(9)]
    expected = [(await studio.told(key, prompt, 20)).text for key, prompt in zip(keys, prompts, strict=True)]
    step = studio.decoder.step

    def breaking(chunks: Any) -> Any:
        if any(chunk.past + chunk.ids.size > 15 and chunk.ids.size == 1 and chunk.past < 17 for chunk in chunks[:1]):
            raise RuntimeError("out of memory")
        return step(chunks)

    # Whoever stands first in a step when its fifth token is read takes the blame, after all halves have been tried.
    monkeypatch.setattr(studio.decoder, "step", breaking)
    answers = await asyncio.gather(
        *(studio.told(key, prompt, 20) for key, prompt in zip(keys, prompts, strict=True)), return_exceptions=True
    )
    failed = [number for number, answer in enumerate(answers) if isinstance(answer, EngineError)]
    assert failed
    for number, answer in enumerate(answers):
        if number not in failed:
            assert answer.text == expected[number]
    monkeypatch.setattr(studio.decoder, "step", step)
    await studio.until(studio.empty)
    assert (await studio.told(keys[0], prompts[0], 20)).text == expected[0]


async def test_a_profile_whose_slot_could_not_be_filled_is_filled_for_the_next_sequence(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = await open_studio()
    key, classifier = await studio.put("p", 1), studio.engine._classifier
    fill, fills = classifier.fill, []

    def fill_from_the_second_time_on(slots: Any, **options: Any) -> Any:
        fills.append(slots)
        if len(fills) == 1:
            raise RuntimeError("this fill fails")
        return fill(slots, **options)

    monkeypatch.setattr(classifier, "fill", fill_from_the_second_time_on)
    with pytest.raises(InternalError, match="this fill fails"):
        await studio.told(key, PROMPT, 20)
    told = await studio.told(key, PROMPT, 20, sampling=SamplingRule(logprobs=0))
    assert len(fills) == 2
    assert told.ids == studio.original.generate(PROMPT, studio.profiles[key], 20)[: len(told.ids)]


async def test_a_step_that_the_device_has_no_memory_for_is_halved_and_changes_no_answer(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    studio = await open_studio()
    keys = [await studio.put(f"p{n}", n) for n in range(6)]
    prompts = [(8 + n, 9, 10 + n, 11) for n in range(6)]
    expected = [(await studio.told(key, prompt, 20)).text for key, prompt in zip(keys, prompts, strict=True)]
    step = studio.decoder.step

    def small(chunks: Any) -> Any:
        if sum(chunk.ids.size for chunk in chunks) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(chunks)

    monkeypatch.setattr(studio.decoder, "step", small)
    answers = await asyncio.gather(*(studio.told(key, prompt, 20) for key, prompt in zip(keys, prompts, strict=True)))
    assert [answer.text for answer in answers] == expected
    with pytest.raises(Unavailable, match="no memory for 5 tokens of a text"):
        await studio.told(keys[0], (8, 9, 10, 11, 12), 20)
    assert re.search(r"the device has no memory for \d sequences, \d+ tokens: they are halved", caplog.text)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT * 6], ids=["that grows", "that is long at once"])
async def test_a_sequence_whose_keys_and_values_the_machine_has_no_memory_for_ends_alone(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, prompt: Any
) -> None:
    studio = await open_studio(cache=KvCache)
    key = await studio.put("p", 1)
    expected = (await studio.told(key, prompt, 90)).text
    zeros = KvPool._zeros

    def short_rows_only(pool: KvPool, rows: int) -> torch.Tensor:
        if rows and pool.length > 64:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")
        return zeros(pool, rows)

    with monkeypatch.context() as patch:
        patch.setattr(KvPool, "_zeros", short_rows_only)
        long, short = await asyncio.gather(
            studio.told(key, prompt, 90), studio.told(key, PROMPT, 40), return_exceptions=True
        )
        assert isinstance(long, Unavailable)
        assert short.finished.completion_tokens == 40
    assert re.search(r"the device has no memory for \d+ tokens of one sequence", caplog.text)
    assert (await studio.told(key, prompt, 90)).text == expected
    await studio.until(studio.empty)


async def test_a_bug_in_telling_an_answer_ends_that_one(open_studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    expected = (await studio.told(key, PROMPT, 20)).text
    bad = asyncio.create_task(studio.told(key, PROMPT, 60))
    await studio.until(lambda: len(studio.engine._generation._sequences) == 1)
    (sequence,) = studio.engine._generation._sequences

    def fail(token: int) -> str:
        raise ValueError("no such token")

    monkeypatch.setattr(sequence.answer._text, "push", fail)
    good = asyncio.create_task(studio.told(key, PROMPT, 20))
    with pytest.raises(InternalError, match="no such token"):
        await bad
    assert (await good).text == expected
    await studio.until(studio.empty)


async def test_hundreds_of_requests_in_disorder_get_one_end_each_and_leave_nothing(open_studio: Any) -> None:
    studio = await open_studio(kv_tokens=1400, slots=12, max_sequences=40)
    keys = [await studio.put(f"p{number}", number, tenant=f"t{number % 5}") for number in range(24)]
    rng = random.Random(9)
    ends = {"finished": 0, "left": 0, "refused": 0}

    async def ask(number: int) -> None:
        key = keys[rng.randrange(len(keys))]
        fate = rng.random()
        if fate < 0.1:
            with pytest.raises(EngineError):
                await studio.told(key, rng.choice([(), (999,), (5,) * 500, ""]), 4)
            ends["refused"] += 1
            return
        prompt = tuple(rng.randrange(3, 160) for _ in range(rng.randrange(1, 60)))
        rule = SamplingRule(temperature=rng.choice([0.0, 1.0]), top_p=0.9)
        if fate < 0.4:
            news = studio.engine.generate(studio.request(key, prompt, 80, sampling=rule))
            for _ in range(rng.randrange(0, 12)):
                if await anext(news, None) is None:
                    break
            await news.aclose()
            ends["left"] += 1
        else:
            told = await studio.told(key, prompt, rng.randrange(1, 60), sampling=rule)
            assert told.finished.finish_reason in ("stop", "length")
            ends["finished"] += 1

    for wave in range(WAVES):
        async with asyncio.timeout(120):
            await asyncio.gather(*(ask(50 * wave + number) for number in range(50)))
    assert sum(ends.values()) == 50 * WAVES
    assert min(ends.values()) > 2.5 * WAVES
    assert studio.engine.metrics.preemptions._value.get() > 0
    await studio.until(studio.empty)
