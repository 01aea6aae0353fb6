"""OpenAI's own client against a real server."""

from __future__ import annotations

import asyncio

import openai
import pytest

from xpeft_server.api.access.key_ring import KeyRing
from xpeft_server.engine import errors
from xpeft_server.engine.requests import ChosenToken, Echo, Finished, LikelyToken, Piece

FILE = {"content-type": "application/octet-stream"}
VERSION = "sha256:" + "cd" * 32
MESSAGES = [{"role": "user", "content": "Say"}]
THE = LikelyToken(5, " the", b" the", -0.25)
A = LikelyToken(6, " a", b" a", -1.5)


@pytest.fixture
async def openai_client(port):
    """Makes a client for each key."""
    clients = []

    def make(key="none"):
        url = f"http://127.0.0.1:{port}/v1"
        clients.append(openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=10))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def user(openai_client):
    return openai_client()


async def test_a_completion(user, script):
    raw = await user.completions.with_raw_response.create(model="p", prompt="Say", max_tokens=5, temperature=0, seed=3)
    completion = raw.parse()
    assert completion.id.startswith("cmpl-")
    assert (completion.object, completion.model) == ("text_completion", "p")
    assert completion.choices[0].text == "Hello"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert raw.headers["x-profile-version"] == VERSION
    assert (script.asked[0].max_new_tokens, script.asked[0].seed) == (5, 3)


async def test_extensions_go_into_the_body(user, script):
    await user.completions.create(
        model="p", prompt="Say", extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 2}
    )
    sampling = script.asked[0].sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (3, 0.1, 2.0)


async def test_completions_of_several_prompts(user):
    completion = await user.completions.create(model="p", prompt=["a", "b"])
    assert [(choice.index, choice.text) for choice in completion.choices] == [(0, "Hello"), (1, "Hello")]
    completion = await user.completions.create(model="p", prompt=[[1, 2], [3]])
    assert len(completion.choices) == 2


async def test_a_completion_as_a_stream(user):
    stream = await user.completions.create(model="p", prompt="Say", stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "Hello"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices] == [None, None, "stop"]
    assert chunks[-1].usage.total_tokens == 5


async def test_logprobs_of_a_completion(user, script):
    script.lines[1:3] = [Piece(" a", (ChosenToken(A, (THE,)),))]
    completion = await user.completions.create(model="p", prompt="Say", logprobs=1)
    logprobs = completion.choices[0].logprobs
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == ([" a"], [-1.5], [0])
    assert logprobs.top_logprobs == [{" the": -0.25, " a": -1.5}]


async def test_a_completion_that_echoes_its_prompt(user, script):
    first, second = LikelyToken(4, "Say", b"Say", None), LikelyToken(5, " it", b" it", -0.5)
    script.lines[1:3] = [Echo("Say it", (ChosenToken(first, ()), ChosenToken(second, (A,))))]
    completion = await user.completions.create(model="p", prompt="Say it", echo=True, max_tokens=0, logprobs=1)
    assert completion.choices[0].text == "Say it"
    logprobs = completion.choices[0].logprobs
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["Say", " it"], [None, -0.5], [0, 3])
    assert logprobs.top_logprobs == [None, {" a": -1.5, " it": -0.5}]


async def test_a_chat(user, script):
    chat = await user.chat.completions.create(model="p", messages=MESSAGES, max_completion_tokens=9)
    assert chat.id.startswith("chatcmpl-")
    assert (chat.object, chat.model) == ("chat.completion", "p")
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].message.content == "Hello"
    assert chat.choices[0].finish_reason == "stop"
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens) == (3, 2, 5)
    again = await user.chat.completions.create(model="p", messages=[*MESSAGES, chat.choices[0].message, *MESSAGES])
    assert again.choices[0].message.content == "Hello"
    assert script.asked[1].prompt[1] == ("assistant", "Hello")


async def test_a_chat_as_a_stream(user):
    stream = await user.chat.completions.create(
        model="p", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None, None]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Hel", "lo", None]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.object for chunk in [*chunks, last]} == {"chat.completion.chunk"}
    assert (last.choices, last.usage.total_tokens) == ([], 5)


async def test_the_streaming_helper_of_the_client(user):
    async with user.chat.completions.stream(model="p", messages=MESSAGES) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello"


async def test_logprobs_of_a_chat(user, script):
    script.lines[1:3] = [Piece(" a", (ChosenToken(A, (THE, A)),))]
    asked = {"model": "p", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    chat = await user.chat.completions.create(**asked)
    (token,) = chat.choices[0].logprobs.content
    assert (token.token, token.logprob, bytes(token.bytes)) == (" a", -1.5, b" a")
    assert [(likely.token, likely.logprob) for likely in token.top_logprobs] == [(" the", -0.25), (" a", -1.5)]
    told = [chunk.choices[0].logprobs async for chunk in await user.chat.completions.create(**asked, stream=True)]
    assert [logprobs.content for logprobs in told if logprobs] == [[token]]


async def test_pieces_arrive_as_they_are_told_and_closing_the_stream_withdraws_the_request(user, script, metric):
    script.hold(after=2)
    stream = await user.completions.create(model="p", prompt="a", stream=True)
    async with asyncio.timeout(10):
        assert (await anext(aiter(stream))).choices[0].text == "Hel"
        await stream.close()
        while not script.withdrawn:
            await asyncio.sleep(0)
        while metric('xpeft_requests_total{outcome="cancelled",route="/v1/completions"}') != 1:
            await asyncio.sleep(0)


async def test_models_are_listed_and_retrieved(user, client, profile_file):
    for name in ("b", "a", "c"):
        assert (await client.put(f"/v1/profiles/{name}", content=profile_file(1), headers=FILE)).status_code == 201
    assert [model.id async for model in user.models.list()] == ["base", "a", "b", "c"]
    page = await user.models.list(extra_query={"after": "a", "limit": 1})
    assert ([model.id for model in page.data], page.has_more) == (["b"], True)
    model = await user.models.retrieve("a")
    assert (model.id, model.object, model.owned_by) == ("a", "model", "default")
    assert (await user.models.retrieve("base")).owned_by == "xpeft"


FAILURES = {
    openai.NotFoundError: (errors.ProfileNotFound("there is no profile 'p'", param="profile"), 404),
    openai.BadRequestError: (errors.NoChatTemplate("no chat template", param="prompt"), 400),
    openai.UnprocessableEntityError: (errors.InputTooLong("too long", param="prompt"), 422),
    openai.ConflictError: (errors.WrongBank("another bank"), 409),
    openai.RateLimitError: (errors.Overloaded("the queue is full"), 429),
    openai.InternalServerError: (errors.Unavailable("the store is down"), 503),
}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_is_the_clients_own_class_of_it(user, script, kind, stream):
    failure, status = FAILURES[kind]
    script.fail(failure)
    with pytest.raises(kind) as raised:
        await user.chat.completions.create(model="p", messages=MESSAGES, stream=stream)
    error = raised.value
    assert (error.status_code, error.code) == (status, failure.code)
    assert error.body["message"] == failure.message
    assert error.param == {"prompt": "messages", "profile": "model"}.get(failure.param, failure.param)
    assert error.request_id


async def test_an_unsupported_parameter_is_a_bad_request(user):
    with pytest.raises(openai.BadRequestError) as raised:
        await user.chat.completions.create(model="p", messages=MESSAGES, n=2)
    assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "n")


async def test_an_unknown_model_is_not_found(user):
    with pytest.raises(openai.NotFoundError) as raised:
        await user.models.retrieve("nobody")
    assert raised.value.code == "profile_not_found"


async def test_a_stream_that_breaks_off_raises_after_what_was_told(user, script):
    script.fail(errors.Unavailable("the device is lost"), after=2)
    chunks = aiter(await user.completions.create(model="p", prompt="a", stream=True))
    assert (await anext(chunks)).choices[0].text == "Hel"
    with pytest.raises(openai.APIError, match="the device is lost") as raised:
        await anext(chunks)
    assert raised.value.code == "unavailable"


class TestKeys:
    """A server with keys."""

    @pytest.fixture
    def keys(self, key_file):
        return KeyRing(key_file)

    async def test_an_unknown_key_is_an_authentication_error(self, openai_client, script):
        with pytest.raises(openai.AuthenticationError) as raised:
            await openai_client("made-up").completions.create(model="p", prompt="a")
        assert raised.value.code == "invalid_api_key"
        assert script.asked == []

    async def test_a_role_that_may_not_is_permission_denied(self, openai_client, script):
        with pytest.raises(openai.PermissionDeniedError):
            await openai_client("ops").chat.completions.create(model="p", messages=MESSAGES)
        assert script.asked == []

    async def test_the_key_says_which_tenant_asks(self, openai_client, script):
        await openai_client("acme-infer").completions.create(model="p", prompt="a")
        await openai_client("other-admin").chat.completions.create(model="p", messages=MESSAGES)
        await openai_client("acme-infer").completions.create(model="base", prompt="a")
        assert [(asked.tenant, asked.profile) for asked in script.asked] == [
            ("acme", ("acme", "p")),
            ("other", ("other", "p")),
            ("acme", None),
        ]


async def test_a_limit_that_was_reached_is_the_finish_reason(user, script):
    script.lines[-1] = Finished("length", 3, 2, 0.0)
    assert (await user.completions.create(model="p", prompt="a")).choices[0].finish_reason == "length"
