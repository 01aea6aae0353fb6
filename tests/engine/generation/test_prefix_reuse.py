"""Prompts that begin alike are computed once: for one tenant and version, in room that nobody needs."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import torch

from xpeft_server.engine.generation.prefix_cache import BLOCK
from xpeft_server.engine.requests import SamplingRule
from xpeft_server.model.kv.arena import KvArena
from xpeft_server.model.kv.cache import KvCache

_rng = random.Random(0)
COMMON = tuple(_rng.randrange(10, 150) for _ in range(2 * BLOCK))
STORES = [KvCache, KvArena]


def ended_by(*words: int) -> tuple[int, ...]:
    return (*COMMON, *words)


class Computed:
    """Counts the tokens of prompts that are computed: those of steps of more than a token, and each first."""

    def __init__(self, studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chunks: list[tuple[int, int]] = []
        step = studio.decoder.step

        def noted(chunks: Any) -> Any:
            self.chunks += [(chunk.past, len(chunk.ids)) for chunk in chunks]
            return step(chunks)

        monkeypatch.setattr(studio.decoder, "step", noted)

    def take(self, prompt: int) -> int:
        """How many tokens of a prompt of so many were computed since the last call."""
        count = sum(length for past, length in self.chunks if past < prompt)
        self.chunks.clear()
        return count


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda studio: Computed(studio, monkeypatch)


@pytest.mark.parametrize("cache", STORES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma"])
async def test_a_prompt_that_begins_like_an_earlier_one_is_computed_from_where_they_differ(
    open_studio: Any, computed: Any, family: str, cache: Any
) -> None:
    studio = await open_studio(family, cache=cache)
    keys = [None, await studio.put("a", 1), await studio.put("b", 2)]
    counted = computed(studio)
    for key in keys:
        profile = studio.profiles.get(key)
        for last, expected in ((20, len(COMMON) + 2), (30, 2), (40, 2)):
            prompt = ended_by(last, last + 1)
            told = await studio.told(key, prompt, 12, sampling=SamplingRule(logprobs=0))
            original = studio.original.generate(prompt, profile, 12)
            assert told.ids == original[: len(told.ids)]
            assert told.finished.completion_tokens == len(original)
            assert counted.take(len(prompt)) == expected
            assert told.started.cached_tokens == told.finished.cached_tokens == len(prompt) - expected
    await studio.until(studio.empty)


async def test_nobody_elses_prefix_is_found(open_studio: Any, computed: Any) -> None:
    """Not another tenant's, though its profile is the same; not another profile's or the bare model's; no old one's."""
    studio = await open_studio()
    owner = await studio.put("p", 1)
    same, other = await studio.put("p", 1, tenant="u"), await studio.put("q", 2)
    (version,) = await studio.store.versions([owner])
    assert await studio.store.versions([same]) == [version]
    counted, prompt = computed(studio), ended_by(20, 21)
    whole = len(prompt)
    first = (await studio.told(owner, prompt)).text
    assert counted.take(whole) == whole
    assert (await studio.told(same, prompt)).text == first
    assert counted.take(whole) == whole
    for key in (other, None):
        assert (await studio.told(key, prompt)).text != first
        assert counted.take(whole) == whole
    await studio.put("p", 3)
    assert (await studio.told(owner, prompt)).text != first
    assert counted.take(whole) == whole
    await studio.put("p", 1)
    assert (await studio.told(owner, prompt)).text == first
    assert counted.take(whole) == 2


async def test_another_tenants_bare_model_finds_nothing(open_studio: Any, computed: Any) -> None:
    studio = await open_studio()
    counted, prompt = computed(studio), ended_by(20, 21)
    for expected in (len(prompt), 2):
        await studio.told(None, prompt)
        assert counted.take(len(prompt)) == expected
    request = studio.request(None, prompt)
    object.__setattr__(request, "tenant", "u")
    async for _ in studio.engine.generate(request):
        pass
    assert counted.take(len(prompt)) == len(prompt)


async def test_a_prefix_is_found_while_its_sequence_still_runs_and_after_its_client_left(
    open_studio: Any, computed: Any
) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    alone = (await studio.told(None, ended_by(30, 31), 20)).text
    counted = computed(studio)
    running = studio.engine.generate(studio.request(None, ended_by(20, 21), 60, ignore_eos=True))
    await anext(running)
    counted.take(0)
    assert (await studio.told(None, ended_by(30, 31), 20)).text == alone
    await running.aclose()
    left = studio.engine.generate(studio.request(key, ended_by(20, 21), 60, ignore_eos=True))
    await anext(left)
    counted.take(0)
    assert (await studio.told(key, ended_by(30, 31))).started.cached_tokens == len(COMMON)
    await left.aclose()
    await studio.until(studio.empty)
    assert (await studio.told(key, ended_by(40, 41))).started.cached_tokens == len(COMMON)


async def test_of_many_that_come_at_once_most_wait_for_their_beginning_to_be_computed_by_one(
    open_studio: Any, computed: Any
) -> None:
    studio = await open_studio(max_batch_tokens=100)
    prompts = [ended_by(20 + number, 7) for number in range(8)]
    alone = [studio.original.generate(prompt, None, 4) for prompt in prompts]
    counted = computed(studio)
    asked = SamplingRule(logprobs=0)
    answers = await asyncio.gather(*(studio.told(None, prompt, 4, sampling=asked) for prompt in prompts))
    for told, original in zip(answers, alone, strict=True):
        assert told.ids == original[: len(told.ids)]
    # The first takes two steps, and what is left of the second step's budget goes to the next one.
    whole = len(prompts[0])
    assert counted.take(whole) <= 2 * whole + 6 * 2
    told_cached = sum(told.finished.cached_tokens for told in answers)
    assert told_cached == studio.engine.metrics.prefix_cache_hits._value.get() >= 6 * len(COMMON)


async def test_a_prompt_whose_logprobs_are_wanted_is_computed_whole(open_studio: Any) -> None:
    studio = await open_studio()
    prompt = ended_by(20, 21)
    asked = {"sampling": SamplingRule(logprobs=1), "echo": True}
    first = await studio.told(None, prompt, 4, **asked)
    again = await studio.told(None, prompt, 4, **asked)
    assert (first.started.cached_tokens, again.started.cached_tokens) == (0, 0)
    assert again.echoes == first.echoes
    assert (await studio.told(None, prompt, 4)).started.cached_tokens == len(COMMON)


async def test_who_turns_it_off_computes_all_and_keeps_nothing(open_studio: Any, computed: Any) -> None:
    studio = await open_studio(prefix_caching=False)
    counted, prompt = computed(studio), ended_by(20, 21)
    for _ in range(2):
        await studio.told(None, prompt)
        assert counted.take(len(prompt)) == len(prompt)
    await studio.until(studio.empty)
    assert studio.decoder.cache.used == 0


async def test_what_is_kept_gives_way_to_whoever_needs_the_room(open_studio: Any) -> None:
    studio = await open_studio(kv_tokens=512)
    keys = [await studio.put(f"p{number}", number) for number in range(12)]
    for key in keys:
        assert (await studio.told(key, ended_by(20, 21))).started.cached_tokens == 0
    assert 0 < studio.engine._generation.generator._prefixes.tokens <= 512
    assert (await studio.told(keys[-1], ended_by(30, 31))).started.cached_tokens == len(COMMON)
    assert (await studio.told(keys[0], ended_by(30, 31))).started.cached_tokens == 0
    assert studio.engine.metrics.preemptions._value.get() == 0
    gauges = {state: gauge._value.get() for state, gauge in studio.engine.metrics.kv_tokens.items()}
    assert sum(gauges.values()) == 512
    assert gauges["used"] == 0
    assert gauges["cached"] > 0


@pytest.mark.parametrize("cache", STORES)
async def test_answers_of_many_that_begin_alike_are_the_originals_though_room_is_scarce(
    open_studio: Any, cache: Any
) -> None:
    studio = await open_studio(kv_tokens=700, cache=cache, max_batch_tokens=100)
    keys = [await studio.put(f"p{number}", number) for number in range(4)]
    rng = random.Random(1)
    asked = []
    for _ in range(40):
        cut = rng.choice([40, 70, 100, len(COMMON)])
        prompt = (*COMMON[:cut], *(rng.randrange(10, 150) for _ in range(rng.randint(1, 20))))
        asked.append((rng.choice(keys), prompt, rng.randint(1, 60)))

    async def ask(number: int) -> Any:
        key, prompt, new = asked[number]
        return await studio.told(key, prompt, new, sampling=SamplingRule(logprobs=0))

    answers = await asyncio.gather(*map(ask, range(len(asked))))
    for (key, prompt, new), told in zip(asked, answers, strict=True):
        original = studio.original.generate(prompt, studio.profiles[key], new)
        assert told.ids == original[: len(told.ids)]
    assert studio.engine.metrics.preemptions._value.get() > 0
    assert studio.engine.metrics.prefix_cache_hits._value.get() > 0
    await studio.until(studio.empty)


async def test_tokens_that_are_not_computed_are_not_charged(open_studio: Any) -> None:
    studio = await open_studio()
    for _ in range(3):
        await studio.told(None, ended_by(20, 21), 2)
    used = studio.engine._generation.generator._shares._used["t"]
    assert used < len(COMMON) + 3 * 10


async def test_without_memory_to_keep_a_prefix_its_answer_is_whole_and_nothing_is_kept(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    studio = await open_studio()

    def shelve(row: Any, tokens: int) -> Any:
        raise MemoryError

    monkeypatch.setattr(studio.decoder.cache, "shelve", shelve)
    first = await studio.told(None, ended_by(20, 21))
    assert first.text == (await studio.told(None, ended_by(20, 21))).text
    await studio.until(studio.empty)
    assert studio.decoder.cache.used == 0
    assert "no memory to keep the prefix" in caplog.text


async def test_a_prompt_with_numbers_that_are_not_finite_leaves_no_prefix(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = await open_studio()
    head = studio.decoder._head
    monkeypatch.setattr(studio.decoder, "_head", lambda hidden: head(hidden) * torch.nan)
    with pytest.raises(Exception, match="not finite"):
        await studio.told(None, ended_by(20, 21))
    await studio.until(studio.empty)
    assert studio.decoder.cache.used == 0
