"""One answer at a time, as its client sees it: what is refused, how it ends, whose profile it has."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch

from xpeft_profiles import ProfileKey, StoreUnavailable
from xpeft_server.engine.errors import (
    DoesNotGenerate,
    InputTooLong,
    InvalidInput,
    LimitReached,
    NoChatTemplate,
    Overloaded,
    ProfileNotFound,
    Unavailable,
)
from xpeft_server.engine.requests import (
    ChatMessage,
    ClassifyRequest,
    Finished,
    Piece,
    PromptGroup,
    SamplingRule,
    Started,
    TextInput,
)
from xpeft_server.tenant_limits import TenantLimits, TenantTable

PROMPT = tuple(range(10, 22))


@pytest.mark.parametrize(
    ("prompt", "new", "error", "words"),
    [
        ("", 4, InvalidInput, "prompt is empty"),
        ((), 4, InvalidInput, "prompt is empty"),
        ((5, 160), 4, InvalidInput, "token 160 is not in the vocabulary, which has 0 to 159"),
        ((5, -1), 4, InvalidInput, "token -1 is not in the vocabulary"),
        ((5,) * 192, 4, InputTooLong, "prompt has 192 tokens; prompt and answer together have room for 192"),
        ("w1 " * 191, 4, InputTooLong, "prompt has 192 tokens"),
        ("w1 " * 1_000_000, 4, InputTooLong, r"prompt has more than \d{3,5} tokens; .* room for 192"),
        ("w" * 2_000_000, 4, InputTooLong, "prompt has more characters than are read of one, and few tokens"),
        ((5,), 0, InvalidInput, "max_new_tokens is 0"),
        ((ChatMessage("user", "w1"),), 4, NoChatTemplate, "no template for chats"),
    ],
)
async def test_what_cannot_be_gone_on_with_is_refused_at_the_door(
    open_studio: Any, prompt: Any, new: int, error: type[Exception], words: str
) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    with pytest.raises(error, match=words):
        await studio.told(key, prompt, new)
    assert studio.empty()


async def test_a_profile_that_does_not_exist_is_not_answered_by_the_bare_model(open_studio: Any) -> None:
    studio = await open_studio()
    await studio.put("p", 1, tenant="other")
    with pytest.raises(ProfileNotFound):
        await studio.told(ProfileKey("t", "p"), PROMPT)
    assert studio.empty()


async def test_an_encoder_says_that_it_does_not_generate(start_engine: Any) -> None:
    engine = await start_engine()
    with pytest.raises(DoesNotGenerate):
        async for _ in engine.generate(None):
            pass


async def test_prompt_and_answer_together_end_with_the_context(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    for new in (None, 1000):
        told = await studio.told(key, (5,) * 190, new, sampling=SamplingRule(logprobs=0))
        assert len(told.ids) == 2
        assert told.finished.finish_reason == "length"


async def test_a_cache_smaller_than_the_context_is_the_limit(open_studio: Any) -> None:
    studio = await open_studio(kv_tokens=100)
    assert (studio.engine.info.context_length, studio.engine.info.max_total_tokens) == (192, 64)
    key = await studio.put("p", 1)
    with pytest.raises(InputTooLong, match="room for 64"):
        await studio.told(key, (5,) * 64)
    told = await studio.told(key, (5,) * 60, None, sampling=SamplingRule(logprobs=0))
    assert len(told.ids) == 4


async def test_a_stop_text_ends_the_answer_at_once_and_is_no_part_of_it(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    whole = (await studio.told(key, PROMPT, 40)).text
    words = whole.split()
    stop = f"{words[5]} {words[6]}"
    told = await studio.told(key, PROMPT, 40, stop=("nowhere", stop))
    assert told.text == whole[: whole.index(stop)]
    assert told.finished.finish_reason == "stop"
    assert told.finished.completion_tokens < 40
    await studio.until(studio.empty)


async def test_a_stop_text_is_no_part_of_what_is_shown_at_any_time(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    whole = (await studio.told(key, PROMPT, 30)).text
    stop = whole[12:17]
    told = await studio.told(key, PROMPT, 30, stop=(stop,))
    for number in range(len(told.pieces)):
        assert stop not in "".join(piece.text for piece in told.pieces[: number + 1])
    assert told.text == whole[: whole.index(stop)]


async def test_the_same_seed_writes_the_same_text_alone_and_in_company_and_after_a_preemption(open_studio: Any) -> None:
    rule = SamplingRule(temperature=1.2, top_p=0.95, top_k=50, min_p=0.01, repetition_penalty=1.1, logprobs=0)
    studio = await open_studio()
    key = await studio.put("p", 1)
    alone = (await studio.told(key, PROMPT, 60, sampling=rule, seed=11)).ids
    assert (await studio.told(key, PROMPT, 60, sampling=rule, seed=12)).ids != alone
    small = await open_studio(kv_tokens=300)
    keys = [await small.put(f"p{number}", number) for number in range(6)]
    answers = await asyncio.gather(*(small.told(key, PROMPT, 60, sampling=rule, seed=11) for key in keys))
    assert small.engine.metrics.preemptions._value.get() > 0
    assert answers[1].ids == alone


async def test_without_a_seed_two_answers_differ(open_studio: Any) -> None:
    studio = await open_studio()
    rule = SamplingRule(temperature=2.0)
    texts = {(await studio.told(None, PROMPT, 30, sampling=rule)).text for _ in range(4)}
    assert len(texts) == 4


@pytest.mark.parametrize(
    "rule",
    [
        SamplingRule(temperature=1e300),
        SamplingRule(temperature=1e-300),
        SamplingRule(repetition_penalty=1e300),
        SamplingRule(repetition_penalty=1e-300, temperature=1.0),
        SamplingRule(temperature=1.0, top_p=1e-300),
        SamplingRule(temperature=1.0, min_p=1.0),
        SamplingRule(temperature=1.0, top_k=10**9),
    ],
)
async def test_extreme_numbers_write_something_too(open_studio: Any, rule: SamplingRule) -> None:
    studio = await open_studio()
    for seed in (-(2**63), 2**63 - 1, 0):
        told = await studio.told(None, PROMPT, 10, sampling=rule, seed=seed)
        assert 1 <= told.finished.completion_tokens <= 10


async def test_logprobs_are_the_models_own_before_any_rule(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    rule = SamplingRule(temperature=0.7, top_k=5, logprobs=3)
    told = await studio.told(key, PROMPT, 12, sampling=rule, seed=1)
    logits = studio.original.logits([*PROMPT, *told.ids], studio.profiles[key])
    expected = torch.log_softmax(logits[len(PROMPT) - 1 : -1].double(), -1)
    tokens = [token for piece in told.pieces for token in piece.tokens]
    assert len(tokens) == 12
    for row, token in zip(expected, tokens, strict=True):
        assert token.token.logprob == pytest.approx(float(row[token.token.id]), abs=1e-4)
        best = row.topk(3)
        assert [each.id for each in token.likeliest] == best.indices.tolist()
        assert [each.logprob for each in token.likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert token.token.text.strip() == f"w{token.token.id - 3}"
        assert token.token.bytes.decode() == token.token.text


async def test_a_profile_replaced_in_mid_stream_goes_on_as_it_began_and_the_next_request_has_the_new_one(
    open_studio: Any,
) -> None:
    # One slot: the new version cannot be resident without the old one having gone.
    studio = await open_studio(slots=1)
    key = await studio.put("p", 1)
    first = studio.profiles[key]
    news = studio.engine.generate(studio.request(key, PROMPT, 100, sampling=SamplingRule(logprobs=0)))
    ids: list[int] = []
    async with asyncio.timeout(60), aclosing(news):
        started = await anext(news)
        assert isinstance(started, Started)
        await studio.put("p", 2)
        later = asyncio.create_task(studio.told(key, PROMPT, 30, sampling=SamplingRule(logprobs=0)))
        async for each in news:
            if isinstance(each, Piece):
                ids += [token.token.id for token in each.tokens]
        new = await later
    assert ids == studio.original.generate(PROMPT, first, 100)[: len(ids)]
    assert new.started.profile_version != started.profile_version
    assert new.ids == studio.original.generate(PROMPT, studio.profiles[key], 30)[: len(new.ids)]


async def test_a_deleted_profile_is_not_served_any_more(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    await studio.told(key, PROMPT, 2)
    await studio.store.delete(key)
    with pytest.raises(ProfileNotFound):
        await studio.told(key, PROMPT, 2)


async def test_while_the_store_is_down_known_profiles_go_on_and_others_are_unavailable(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = await open_studio()
    known, unknown = await studio.put("known", 1), await studio.put("unknown", 2)
    before = await studio.told(known, PROMPT)

    async def down(*_: Any) -> Any:
        raise StoreUnavailable("the store is down")

    for question in ("versions", "get_many", "ping"):
        monkeypatch.setattr(studio.store, question, down)
    assert (await studio.told(known, PROMPT)).text == before.text
    with pytest.raises(Unavailable):
        await studio.told(unknown, PROMPT)
    assert not studio.engine.status().ready
    assert studio.empty()


async def test_a_decoder_classifies_and_generates_side_by_side(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1, labels=3)
    text = ClassifyRequest(key, (TextInput("w1 w2 w3 w4"),))
    alone = await studio.engine.classify(text)
    written = await studio.told(key, PROMPT, 50)
    tasks = [asyncio.create_task(studio.told(key, PROMPT, 50)) for _ in range(8)]
    classified = await asyncio.gather(*(studio.engine.classify(text) for _ in range(40)))
    assert {each.data for each in classified} == {alone.data}
    assert {told.text for told in await asyncio.gather(*tasks)} == {written.text}


async def test_a_chat_is_rendered_by_the_tokenizers_template(
    open_studio: Any, tmp_path: Path, make_decoder: Any
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "w1 {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}w2{% endif %}"
    )
    studio = await open_studio(str(make_decoder(tmp_path, "llama", template)))
    chat = (ChatMessage("user", "w7 w8"), ChatMessage("assistant", "w9"), ChatMessage("user", "w10"))
    told = await studio.told(None, chat, 8, sampling=SamplingRule(logprobs=0))
    prompt = [3 + 1, 3 + 7, 3 + 8, 1, 3 + 1, 3 + 9, 1, 3 + 1, 3 + 10, 1, 3 + 2]
    assert told.finished.prompt_tokens == len(prompt)
    assert told.ids == studio.original.generate(prompt, None, 8)[: len(told.ids)]
    with pytest.raises(InvalidInput, match="refuses this chat: no system here"):
        await studio.told(None, (ChatMessage("system", "w1"),), 8)


async def test_who_leaves_takes_the_sequence_out_at_the_next_step(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    news = studio.engine.generate(studio.request(key, PROMPT, 150))
    await anext(news)
    assert studio.decoder.cache.used > 0
    await news.aclose()
    await studio.until(studio.empty)
    assert studio.engine.metrics.generation_tokens._value.get() < 150


async def test_who_leaves_before_the_first_token_leaves_nothing_behind(open_studio: Any) -> None:
    studio = await open_studio(max_sequences=1)
    key = await studio.put("p", 1)
    long = asyncio.create_task(studio.told(key, PROMPT, 120))
    await studio.until(lambda: studio.decoder.cache.used > 0)
    waiting = asyncio.create_task(studio.told(key, PROMPT, 120))
    await studio.until(lambda: len(studio.engine._generation._sequences) == 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await long).finished.completion_tokens > 0
    await studio.until(studio.empty)


async def test_more_than_the_queue_holds_is_turned_away(open_studio: Any) -> None:
    studio = await open_studio(queue_limit=2)
    key = await studio.put("p", 1)
    answers = await asyncio.gather(*(studio.told(key, PROMPT, 20) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(answer, Overloaded) for answer in answers) == 3
    await studio.until(studio.empty)


async def test_tokens_that_were_written_count_against_the_tenants_rate(open_studio: Any) -> None:
    studio = await open_studio(tenants=TenantTable(TenantLimits(tokens_per_second=1)))
    key = await studio.put("p", 1)
    assert (await studio.told(key, (5,), 60)).finished.completion_tokens == 60
    with pytest.raises(LimitReached, match="1 tokens a second"):
        await studio.told(key, (5,), 1)
    await studio.told(await studio.put("p", 1, tenant="another"), (5,), 1)


async def test_prompts_of_one_request_are_let_in_together_or_not_at_all(open_studio: Any) -> None:
    studio = await open_studio(queue_limit=2, max_sequences=2)
    key = await studio.put("p", 1)
    groups = [PromptGroup(name, 5) for name in ("first", "second")]
    answers = await asyncio.gather(
        *(studio.told(key, PROMPT, 20, group=group) for group in groups for _ in range(5)), return_exceptions=True
    )
    assert [isinstance(answer, Overloaded) for answer in answers] == [False] * 5 + [True] * 5
    assert len({answer.text for answer in answers[:5]}) == 1
    await studio.until(studio.empty)


async def test_a_request_is_inside_until_the_last_of_its_prompts_has_ended(open_studio: Any) -> None:
    studio = await open_studio(queue_limit=4)
    key, group = await studio.put("p", 1), PromptGroup("x", 4)
    permits = studio.engine._permits
    long = [asyncio.create_task(studio.told(key, PROMPT, new, group=group)) for new in (100, 150)]
    failing = asyncio.create_task(studio.told(key, (5,) * 192, group=group))
    assert (await studio.told(key, PROMPT, 2, group=group)).finished.completion_tokens == 2
    with pytest.raises(InputTooLong):
        await failing
    long[1].cancel()
    await asyncio.wait(long[1:])
    assert (permits.texts, permits.tokens) == (4, 3 * len(PROMPT))
    with pytest.raises(Overloaded):
        await studio.told(key, PROMPT)
    await long[0]
    await studio.until(studio.empty)
    await studio.told(key, PROMPT)


async def test_closing_the_engine_tells_everybody(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    tasks = [asyncio.create_task(studio.told(key, PROMPT, 150)) for _ in range(4)]
    await studio.until(lambda: studio.decoder.cache.used > 0)
    await studio.engine.close()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)
    with pytest.raises(Unavailable):
        await studio.told(key, PROMPT)


async def test_requests_that_run_and_wait_are_counted(open_studio: Any) -> None:
    studio = await open_studio(max_sequences=2)
    key = await studio.put("p", 1)
    tasks = [asyncio.create_task(studio.told(key, PROMPT, 60)) for _ in range(8)]
    registry = studio.engine.metrics._registry

    def counted() -> tuple[float, float]:
        return tuple(registry.get_sample_value(f"xpeft_requests_{state}") for state in ("running", "waiting"))

    seen = []
    await studio.until(lambda: seen.append(counted()) or (seen[-1][0] == 2 and seen[-1][1] > 2))
    assert max(running for running, _ in seen) == 2
    await asyncio.gather(*tasks)
    await studio.until(studio.empty)
    assert counted() == (0, 0)


async def test_metrics_count_what_was_written(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    told = [await studio.told(key, PROMPT, new) for new in (3, 5)]
    page = studio.engine.metrics.render().decode()
    tokens = sum(each.finished.completion_tokens for each in told)
    assert f"xpeft_generation_tokens_total {float(tokens)}" in page
    assert f"xpeft_prompt_tokens_total {float(2 * len(PROMPT))}" in page
    assert "xpeft_time_to_first_token_seconds_count 2.0" in page
    assert 'xpeft_kv_tokens{state="used"} 0.0' in page
    assert "xpeft_requests_running 0.0" in page
    assert all(isinstance(each.finished, Finished) and each.finished.inference_time > 0 for each in told)


async def test_who_reads_slowly_makes_no_inference_slow_and_leaves_the_device(open_studio: Any) -> None:
    studio = await open_studio()
    key = await studio.put("p", 1)
    running = studio.engine.metrics.requests_running.collect
    async with aclosing(studio.engine.generate(studio.request(key, PROMPT, 3))) as news:
        await anext(news)
        await studio.until(lambda: running()[0].samples[0].value == 0)
        await asyncio.sleep(0.1)
        *_, finished = [each async for each in news]
    assert isinstance(finished, Finished)
    told = studio.engine.metrics.request_inference_time._sum.get()
    assert told == pytest.approx(finished.inference_time)
