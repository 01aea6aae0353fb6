"""Greedy answers are those of transformers' own model, alone with the same profile, to the last token."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xpeft_profiles import Profile, ProfileKey
from xpeft_server.engine.requests import SamplingRule

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma")
PROFILES = 20
NIGHTLY = os.environ.get("NIGHTLY") == "1"
PROMPTS = {family: 30 if NIGHTLY or family == "qwen3" else 6 for family in FAMILIES}
"""Of each profile."""


async def ask_staggered(studio: Any, keys: list[ProfileKey], prompts: list[list[int]], new: list[int]) -> list[Any]:
    """Everybody's answer; a few ask in every turn of the event loop, so that they join at different steps."""
    rule = SamplingRule(logprobs=0)
    tasks = []
    for number, (key, prompt, most) in enumerate(zip(keys, prompts, new, strict=True)):
        tasks.append(asyncio.create_task(studio.told(key, tuple(prompt), most, sampling=rule)))
        if number % 7 == 0:
            await asyncio.sleep(0.002)
    return await asyncio.gather(*tasks)


def differing(studio: Any, told: Any, prompt: list[int], profile: Profile | None, new: int) -> str | None:
    """How an answer differs from what the original model would write, token after token."""
    ids = told.ids
    logits = studio.original.logits([*prompt, *ids], profile)[len(prompt) - 1 :]
    wanted = logits.argmax(-1).tolist()
    if ids != wanted[:-1]:
        return f"{ids} instead of {wanted}"
    ended = wanted[-1] in studio.plm.ends
    reason = "stop" if ended and len(ids) < new else "length"
    if told.finished.finish_reason != reason or (reason == "length" and len(ids) != new):
        return f"ended by {told.finished.finish_reason} after {len(ids)}, next would be {wanted[-1]}"
    return None


@pytest.mark.parametrize("family", FAMILIES)
async def test_answers_of_20_profiles_that_come_and_are_preempted_at_any_time_are_the_originals(
    open_studio: Any, family: str
) -> None:
    studio = await open_studio(family, kv_tokens=700)
    keys = [await studio.put(f"p{number}", number) for number in range(PROFILES)] * PROMPTS[family]
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, 160, int(rng.integers(1, 60))).tolist() for _ in keys]
    new = rng.integers(1, 41, len(keys)).tolist()
    answers = await ask_staggered(studio, keys, prompts, new)
    # How many there are is a matter of time; that there are some, not.
    assert studio.engine.metrics.preemptions._value.get() > 3
    wrong = [
        problem
        for key, prompt, told, most in zip(keys, prompts, answers, new, strict=True)
        if (problem := differing(studio, told, prompt, studio.profiles[key], most)) is not None
    ]
    assert wrong == []
    # The check itself is not blind: with another profile, these are not the original's answers.
    others = keys[1:] + keys[:1]
    found = [
        differing(studio, told, prompt, studio.profiles[key], most)
        for key, prompt, told, most in zip(others, prompts, answers, new, strict=True)
        if len(told.ids) > 20
    ]
    assert sum(problem is not None for problem in found) > 0.95 * len(found) > len(keys) / 6
    await studio.until(studio.empty)


@pytest.mark.parametrize("family", FAMILIES)
async def test_an_answer_is_what_generate_returns(open_studio: Any, family: str) -> None:
    studio = await open_studio(family)
    keys = [None, *[await studio.put(f"p{number}", number) for number in range(5 if NIGHTLY else 2)]]
    rng = np.random.default_rng(5)
    for key in keys:
        prompt = rng.integers(3, 160, 12).tolist()
        told = await studio.told(key, tuple(prompt), 40, sampling=SamplingRule(logprobs=0))
        wanted = studio.original.generate(prompt, studio.profiles.get(key), 40)
        ended = wanted[-1] in studio.plm.ends
        assert told.ids == (wanted[:-1] if ended else wanted)
        assert told.finished.completion_tokens == len(wanted)
        assert told.finished.prompt_tokens == len(prompt)
        assert told.text.replace(" ", "") == "".join(f"w{token - 3}" for token in told.ids if 2 < token < 159)


async def test_a_profile_and_the_bare_model_do_not_answer_alike(open_studio: Any) -> None:
    studio = await open_studio()
    prompt = tuple(range(10, 20))
    keys = [None, await studio.put("a", 1), await studio.put("b", 2)]
    texts = {(await studio.told(key, prompt, 12)).text for key in keys}
    assert len(texts) == 3


async def test_a_prompt_longer_than_the_budget_is_read_in_pieces_beside_others_who_write(open_studio: Any) -> None:
    studio = await open_studio(max_batch_tokens=16)
    keys = [await studio.put(f"p{number}", number) for number in range(4)]
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 160, length).tolist() for length in (150, 5, 100, 33)]
    answers = await ask_staggered(studio, keys, prompts, [30, 60, 20, 30])
    for key, prompt, told, new in zip(keys, prompts, answers, [30, 60, 20, 30], strict=True):
        assert differing(studio, told, prompt, studio.profiles[key], new) is None


async def test_the_real_model_answers_like_the_original(open_studio: Any, project_root: Path) -> None:
    path = project_root.parent / "shared" / "models" / "critic-lm"
    if not (path / "config.json").exists():
        pytest.skip("the model critic-lm is not beside the project")
    studio = await open_studio(str(path), bank="random:N=20,R=16,seed=1,std=0.2", kv_tokens=4096)
    profiles = 20 if NIGHTLY else 8
    keys = [await studio.put(f"p{number}", number) for number in range(profiles)]
    prompts = [
        f"Film: {title} ({1990 + number})\nVerdict: {verdict}\nReview:"
        for number, (title, verdict) in enumerate(
            [("Heat", "fresh"), ("The Room", "rotten"), ("Alien", "fresh"), ("Gigli", "rotten")] * (profiles // 4)
        )
    ]
    rule = SamplingRule(logprobs=0)
    answers = await asyncio.gather(
        *(studio.told(key, prompt, 40, sampling=rule) for key, prompt in zip(keys, prompts, strict=True))
    )
    assert studio.engine.metrics.preemptions._value.get() == 0
    for key, prompt, told in zip(keys, prompts, answers, strict=True):
        ids = studio.plm.tokenizer.encode([(prompt, None)])[0].ids.tolist()
        wanted = studio.original.generate(ids, studio.profiles[key], 40)
        assert told.ids == [token for token in wanted if token not in studio.plm.ends]
    assert len({told.text for told in answers}) > 0.75 * profiles


async def test_answers_that_ignore_ends_are_the_originals_over_every_end_up_to_their_length(open_studio: Any) -> None:
    studio = await open_studio("llama")
    key = await studio.put("p", 1)
    rng = np.random.default_rng(5)
    rule = SamplingRule(logprobs=0)
    passed = 0
    for prompt in rng.integers(3, 160, (20, 4)).tolist():
        told = await studio.told(key, tuple(prompt), 40, sampling=rule, ignore_eos=True)
        logits = studio.original.logits([*prompt, *told.ids], studio.profiles[key])
        assert told.ids == logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert (told.finished.finish_reason, told.finished.completion_tokens, len(told.ids)) == ("length", 40, 40)
        assert (told.started.prompt_tokens, told.pieces[-1].generated) == (4, 40)
        passed += any(token in studio.plm.ends for token in told.ids[:-1])
    assert passed
