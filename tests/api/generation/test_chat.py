"""POST /v1/chat/completions: OpenAI's shape, whole and as a stream."""

from __future__ import annotations

import re
import time

import pytest

from xpeft_server.engine.requests import ChatMessage, ChosenToken, Finished, LikelyToken, Piece, Started

URL = "/v1/chat/completions"
VERSION = "sha256:" + "cd" * 32
ID = re.compile(rb"chatcmpl-[0-9a-f]{24}")
CREATED = re.compile(rb'"created":[0-9]+')
MESSAGES = [{"role": "user", "content": "Say"}]
BODY = {"model": "support", "messages": MESSAGES}
THE = LikelyToken(5, " the", b" the", -0.25)
HALF = LikelyToken(6, "�", b"\xc3", float("-inf"))


async def test_an_answer_has_openais_shape(client, script, metric, usage):
    began = int(time.time())
    answer = await client.post(URL, json=BODY)
    body = answer.json()
    assert ID.fullmatch(body.pop("id").encode())
    assert began <= body.pop("created") <= time.time()
    assert body == {
        "object": "chat.completion",
        "model": "support",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": usage(3, 2),
    }
    assert answer.headers["x-profile-version"] == VERSION
    assert (float(answer.headers["x-queue-time"]), float(answer.headers["x-inference-time"])) == (0.001, 0.002)
    assert script.asked[0].prompt == (ChatMessage("user", "Say"),)
    assert metric('xpeft_profile_requests_total{profile="support",tenant="default"}') == 1


async def test_every_role_and_form_of_content_reaches_the_engine(client, script):
    last = {"type": "text", "text": "", "prompt_cache_breakpoint": {"mode": "explicit"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "One,"}, {"type": "text", "text": " two"}]},
        {"role": "assistant", "content": [last]},
    ]
    assert (await client.post(URL, json={"model": "p", "messages": messages})).status_code == 200
    assert script.asked[0].prompt == (
        ChatMessage("system", "Be brief."),
        ChatMessage("system", ""),
        ChatMessage("user", "One, two"),
        ChatMessage("assistant", ""),
    )


async def test_an_answers_message_can_be_sent_back(client, script):
    message = (await client.post(URL, json=BODY)).json()["choices"][0]["message"]
    message |= dict.fromkeys(("audio", "function_call", "tool_calls")) | {"annotations": []}
    again = await client.post(URL, json={"model": "p", "messages": [*MESSAGES, message, *MESSAGES]})
    assert again.status_code == 200
    assert script.asked[1].prompt[1] == ChatMessage("assistant", "Hello")


@pytest.mark.parametrize("fields", [{"refusal": None}, {}, None])
async def test_an_answers_message_can_be_sent_back_by_litellm(client, script, fields):
    message = {"role": "assistant", "content": "Hello", "provider_specific_fields": fields}
    assert (await client.post(URL, json={**BODY, "messages": [*MESSAGES, message]})).status_code == 200
    assert script.asked[0].prompt[1] == ChatMessage("assistant", "Hello")


async def test_base_asks_for_the_bare_model(client, script):
    answer = await client.post(URL, json={**BODY, "model": "base"})
    assert (answer.json()["model"], script.asked[0].profile) == ("base", None)
    assert "x-profile-version" not in answer.headers


@pytest.mark.parametrize(
    ("limits", "seen"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 5),
    ],
)
async def test_both_words_for_the_limit_are_taken(client, script, limits, seen):
    assert (await client.post(URL, json={**BODY, **limits})).status_code == 200
    assert script.asked[0].max_new_tokens == seen


async def test_two_different_limits_are_422(client, script):
    error = (await client.post(URL, json={**BODY, "max_tokens": 5, "max_completion_tokens": 6})).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_field", "max_completion_tokens")
    assert script.asked == []


@pytest.mark.parametrize("limit", [0, -1, 1 << 31, "5", 1.5])
async def test_the_older_word_has_the_same_range(client, limit):
    answer = await client.post(URL, json={**BODY, "max_tokens": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "max_tokens")


async def test_a_stream_is_this_byte_for_byte(client, metric):
    answer = await client.post(URL, json={**BODY, "model": "p", "stream": True})
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-profile-version"] == VERSION
    assert len(set(ID.findall(answer.content))) == len(set(CREATED.findall(answer.content))) == 1
    head = b'data: {"id":"ID","object":"chat.completion.chunk","created":0,"model":"p","choices":[{"index":0,"delta":'
    choices = [
        b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}',
        b'{"content":"Hel"},"logprobs":null,"finish_reason":null}',
        b'{"content":"lo"},"logprobs":null,"finish_reason":null}',
        b'{},"logprobs":null,"finish_reason":"stop"}',
    ]
    told = b"".join(head + choice + b"]}\n\n" for choice in choices) + b"data: [DONE]\n\n"
    assert CREATED.sub(b'"created":0', ID.sub(b"ID", answer.content)) == told
    assert metric('xpeft_profile_requests_total{profile="p",tenant="default"}') == 1


async def test_a_stream_begins_when_the_answer_does(post, script):
    script.hold(after=1)
    stream = post(URL, **BODY, stream=True)
    assert b'"delta":{"role":"assistant","content":""}' in await stream.part()
    await script.waiting.wait()
    assert stream.parts.empty()


async def test_the_usage_comes_last_if_it_is_asked_for(client, events, usage):
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(await client.post(URL, json=body))
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (last["object"], last["choices"]) == ("chat.completion.chunk", [])
    assert last["usage"] == usage(3, 2)


async def test_the_usage_so_far_comes_with_every_chunk_if_it_is_asked_for(client, events, script, usage):
    script.lines = [
        Started(VERSION, 0.0, True, 3, 2),
        Piece("Hel", (), 1),
        Piece("lo", (), 2),
        Finished("stop", 3, 3, 0.1, 2),
    ]
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = events(await client.post(URL, json={**BODY, "stream": True, "stream_options": options}))
    assert [chunk["usage"] for chunk in chunks] == [usage(3, generated, cached=2) for generated in range(4)]
    assert last["usage"] == chunks[-1]["usage"]


@pytest.mark.parametrize("ignores", [False, True])
async def test_whether_ends_are_ignored_is_passed_on(client, script, ignores):
    await client.post(URL, json={**BODY, "ignore_eos": ignores})
    await client.post("/v1/completions", json={"model": "p", "prompt": "a", "ignore_eos": ignores})
    await client.post("/v1/generate", json={"profile": "p", "prompt": "a", "ignore_eos": ignores})
    assert [asked.ignore_eos for asked in script.asked] == [ignores] * 3


def with_logprobs(script):
    script.lines[1:] = [
        Piece(" the", (ChosenToken(THE, (THE, HALF)),)),
        Piece("", (ChosenToken(HALF, ()),)),
        Finished("length", 3, 2, 0.002),
    ]


THE_DOCUMENT = {"token": " the", "logprob": -0.25, "bytes": [32, 116, 104, 101]}
HALF_DOCUMENT = {"token": "�", "logprob": -9999.0, "bytes": [0xC3]}
CONTENT = [{**THE_DOCUMENT, "top_logprobs": [THE_DOCUMENT, HALF_DOCUMENT]}, {**HALF_DOCUMENT, "top_logprobs": []}]


async def test_logprobs_have_openais_shape(client, script):
    with_logprobs(script)
    (choice,) = (await client.post(URL, json={**BODY, "logprobs": True, "top_logprobs": 2})).json()["choices"]
    assert choice["logprobs"] == {"content": CONTENT, "refusal": None}
    assert choice["finish_reason"] == "length"


async def test_logprobs_of_a_stream_come_with_their_delta(client, script, events):
    with_logprobs(script)
    chunks = events(await client.post(URL, json={**BODY, "logprobs": True, "stream": True}))
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [
        None,
        {"content": CONTENT[:1], "refusal": None},
        {"content": CONTENT[1:], "refusal": None},
        None,
    ]


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": None}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
async def test_as_many_likely_tokens_are_told_as_are_asked_for(client, script, fields, seen):
    assert (await client.post(URL, json={**BODY, **fields})).status_code == 200
    assert script.asked[0].sampling.logprobs == seen


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
async def test_logprobs_that_make_no_sense_are_422(client, script, fields, param):
    answer = await client.post(URL, json={**BODY, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)
    assert script.asked == []
