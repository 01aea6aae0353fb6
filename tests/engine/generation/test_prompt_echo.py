"""A prompt that is told before its answer: its text, and how likely the model with the profile finds its tokens."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from xpeft_profiles import Profile
from xpeft_server.engine.errors import InputTooLong, InvalidInput
from xpeft_server.engine.generation import prompt_echo
from xpeft_server.engine.requests import ChosenToken, SamplingRule

FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma")
RULE = SamplingRule(logprobs=3)


def differing(studio: Any, tokens: list[ChosenToken], prompt: list[int], profile: Profile | None) -> str | None:
    """How what is told of a prompt differs from what the original model says of it."""
    if [each.token.id for each in tokens] != prompt:
        return "other tokens"
    if (tokens[0].token.logprob, tokens[0].likeliest) != (None, ()):
        return f"{tokens[0]} comes before all others"
    expected = studio.original.logits(prompt, profile).double().log_softmax(-1)
    for place, told in enumerate(tokens[1:], 1):
        row = expected[place - 1]
        best = row.topk(3)
        if [each.id for each in told.likeliest] != best.indices.tolist():
            return f"{place}: {told.likeliest} instead of {best}"
        logprobs = [told.token.logprob, *(each.logprob for each in told.likeliest)]
        if not np.allclose(logprobs, [row[prompt[place]], *best.values], rtol=0, atol=1e-4):
            return f"{place}: {logprobs} instead of {row[prompt[place]]}, {best}"
    return None


@pytest.mark.parametrize("family", FAMILIES)
async def test_prompts_of_many_profiles_read_in_parts_and_preempted_are_as_likely_as_the_original_finds_them(
    open_studio: Any, family: str
) -> None:
    studio = await open_studio(family, kv_tokens=700, max_batch_tokens=48)
    keys = [None, *[await studio.put(f"p{number}", number) for number in range(5)]] * 6
    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, 160, int(rng.integers(1, 90))).tolist() for _ in keys]
    asked = zip(keys, prompts, strict=True)
    told = await asyncio.gather(
        *(studio.told(key, tuple(prompt), 30, sampling=RULE, echo=True) for key, prompt in asked)
    )
    assert studio.engine.metrics.preemptions._value.get() > 0
    of = [[token for part in each.echoes for token in part.tokens] for each in told]
    profiles = [None if key is None else studio.profiles[key] for key in keys]
    checked = zip(of, prompts, profiles, strict=True)
    assert [differing(studio, *each) for each in checked] == [None] * len(keys)
    # The check itself is not blind: with another profile, they are not.
    others = zip(of, prompts, profiles[1:] + profiles[:1], strict=True)
    assert sum(differing(studio, *each) is not None for each in others) >= sum(len(prompt) > 1 for prompt in prompts)
    # What follows is what follows without it.
    alone = await studio.told(keys[1], tuple(prompts[1]), 30, sampling=RULE)
    assert told[1].ids == alone.ids
    await studio.until(studio.empty)


async def test_a_prompt_alone_is_told_without_an_answer_and_may_fill_the_context(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    prompt = tuple(range(3, 3 + 96)) * 2
    told = await studio.told(key, prompt, 0, sampling=RULE, echo=True)
    assert (told.pieces, told.finished.finish_reason, told.finished.completion_tokens) == ([], "length", 0)
    tokens = [token for part in told.echoes for token in part.tokens]
    assert differing(studio, tokens, list(prompt), studio.profiles[key]) is None
    assert studio.engine.metrics.generation_tokens._value.get() == 0
    with pytest.raises(InputTooLong, match="prompt has 192 tokens; prompt and answer together have room for 192"):
        await studio.told(key, prompt, 1, echo=True)
    with pytest.raises(InvalidInput, match="max_new_tokens is 0, at least 1 is needed"):
        await studio.told(key, prompt[:3], 0)
    await studio.until(studio.empty)


async def test_the_text_is_the_one_that_was_sent_or_what_the_tokens_spell(open_studio: Any) -> None:
    studio = await open_studio()
    sent = await studio.told(None, "w7  w8", 2, echo=True)
    assert [(part.text, part.tokens) for part in sent.echoes] == [("w7  w8", ())]
    spelled = await studio.told(None, (0, 10, 11), 2, echo=True)
    assert [part.text for part in spelled.echoes] == ["w7 w8"]
    assert spelled.text == sent.text


async def test_a_long_prompt_is_told_in_parts(open_studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_echo, "AT_ONCE", 7)
    studio = await open_studio()
    ids = tuple(range(3, 27))
    told = await studio.told(None, ids, 2, sampling=SamplingRule(logprobs=0), echo=True)
    assert [len(part.tokens) for part in told.echoes] == [7, 7, 7, 3]
    assert "".join(part.text for part in told.echoes) == " ".join(f"w{token - 3}" for token in ids)
    tokens = [token for part in told.echoes for token in part.tokens]
    assert [token.token.id for token in tokens] == list(ids)
    assert all(before.token.logprob != after.token.logprob for before, after in pairwise(tokens[1:]))
    sent = await studio.told(None, "w1 " * 20, 2, sampling=SamplingRule(logprobs=0), echo=True)
    assert [part.text for part in sent.echoes] == ["w1 " * 20, "", ""]
