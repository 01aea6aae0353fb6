"""POST /v1/generate: what is given, whole and as a stream."""

from __future__ import annotations

import re

import pytest

from xpeft_server.engine.requests import ChosenToken, Finished, LikelyToken, Piece

URL = "/v1/generate"
VERSION = "sha256:" + "cd" * 32
THE = LikelyToken(5, " the", b" the", -0.25)
HALF = LikelyToken(6, "�", b"\xc3", float("-inf"))


async def test_an_answer_has_the_shape_of_the_contract(client, script):
    answer = await client.post(URL, json={"profile": "support", "prompt": "Say"})
    body = answer.json()
    assert answer.status_code == 200
    assert re.fullmatch("generate-[0-9a-f]{24}", body.pop("id"))
    assert body == {
        "profile": "support",
        "profile_version": VERSION,
        "text": "Hello",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    (asked,) = script.asked
    assert (asked.tenant, asked.profile, asked.prompt) == ("default", ("default", "support"), "Say")


async def test_an_answer_carries_its_version_and_its_times(client):
    headers = (await client.post(URL, json={"profile": "p", "prompt": "a"})).headers
    assert headers["content-type"] == "application/json"
    assert headers["x-profile-version"] == VERSION
    assert (float(headers["x-queue-time"]), float(headers["x-inference-time"])) == (0.001, 0.002)


async def test_a_stream_is_this_byte_for_byte(client):
    answer = await client.post(URL, json={"profile": "p", "prompt": "a", "stream": True})
    assert answer.status_code == 200
    (id_,) = set(re.findall(rb"generate-[0-9a-f]{24}", answer.content))
    assert answer.content.replace(id_, b"ID") == (
        b'data: {"id":"ID","text":"Hel"}\n\n'
        b'data: {"id":"ID","text":"lo"}\n\n'
        b'data: {"id":"ID","text":"","finish_reason":"stop",'
        b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
        b"data: [DONE]\n\n"
    )


async def test_a_stream_carries_its_version_and_its_time_in_the_queue(client):
    headers = (await client.post(URL, json={"profile": "p", "prompt": "a", "stream": True})).headers
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-profile-version"] == VERSION
    assert float(headers["x-queue-time"]) == 0.001
    assert "x-inference-time" not in headers
    assert {"x-request-id", "x-total-time"} <= set(headers)


async def test_a_stream_begins_when_the_answer_does_and_each_piece_goes_out_as_it_comes(post, script):
    before_text, before_end = script.hold(after=1), script.hold(after=3)
    stream = post(URL, profile="p", prompt="a", stream=True)
    await script.waiting.wait()
    assert stream.start["status"] == 200
    assert dict(stream.start["headers"])[b"x-profile-version"] == VERSION.encode()
    assert stream.parts.empty()
    script.waiting.clear()
    before_text.set()
    assert b'"text":"Hel"' in await stream.part()
    await script.waiting.wait()
    assert stream.parts.empty()
    before_end.set()
    assert b'"text":"lo"' in await stream.part()
    assert (await stream.part()).endswith(b"data: [DONE]\n\n")
    await stream.task


@pytest.mark.parametrize("stream", [False, True])
async def test_base_asks_for_the_bare_model(client, script, stream):
    answer = await client.post(URL, json={"profile": "base", "prompt": "a", "stream": stream})
    assert answer.status_code == 200
    assert "x-profile-version" not in answer.headers
    assert "x-queue-time" in answer.headers
    assert script.asked[0].profile is None
    assert script.asked[0].tenant == "default"
    if not stream:
        assert answer.json()["profile"] == "base"
        assert answer.json()["profile_version"] is None


async def test_model_is_another_word_for_profile(client, script):
    assert (await client.post(URL, json={"model": "q", "prompt": "a"})).json()["profile"] == "q"
    assert (await client.post(URL, json={"model": "q", "profile": "q", "prompt": "a"})).status_code == 200
    answer = await client.post(URL, json={"model": "q", "profile": "p", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "model")
    assert [asked.profile.name for asked in script.asked] == ["q", "q"]


@pytest.mark.parametrize(("given", "seen"), [("\n ü \U0001f600",) * 2, ([7], (7,)), ([1, 0, 2], (1, 0, 2))])
async def test_a_prompt_is_a_text_or_token_ids(client, script, given, seen):
    assert (await client.post(URL, json={"profile": "p", "prompt": given})).status_code == 200
    assert script.asked[0].prompt == seen


def with_logprobs(script):
    script.lines[1:] = [
        Piece(" the", (ChosenToken(THE, (THE, HALF)),)),
        Piece("", (ChosenToken(HALF, ()),)),
        Finished("length", 3, 2, 0.002),
    ]


LOGPROBS = [
    {
        "id": 5,
        "token": " the",
        "logprob": -0.25,
        "bytes": [32, 116, 104, 101],
        "top_logprobs": [
            {"id": 5, "token": " the", "logprob": -0.25, "bytes": [32, 116, 104, 101]},
            {"id": 6, "token": "�", "logprob": -9999.0, "bytes": [0xC3]},
        ],
    },
    {"id": 6, "token": "�", "logprob": -9999.0, "bytes": [0xC3], "top_logprobs": []},
]


async def test_logprobs_are_there_if_they_are_asked_for(client, script):
    with_logprobs(script)
    body = (await client.post(URL, json={"profile": "p", "prompt": "a", "logprobs": 2})).json()
    assert body["logprobs"] == LOGPROBS
    assert (body["text"], body["finish_reason"]) == (" the", "length")
    assert script.asked[0].sampling.logprobs == 2


async def test_logprobs_of_a_stream_come_with_their_piece(client, script, events):
    with_logprobs(script)
    told = events(await client.post(URL, json={"profile": "p", "prompt": "a", "logprobs": 0, "stream": True}))
    assert [event.get("logprobs") for event in told] == [LOGPROBS[:1], LOGPROBS[1:], None]
    assert script.asked[0].sampling.logprobs == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_answered_requests_are_counted_by_profile(client, script, metric, stream):
    for name in ("a", "a", "base"):
        await client.post(URL, json={"profile": name, "prompt": "x", "stream": stream})
    script.fail(RuntimeError("broken"), after=2)
    await client.post(URL, json={"profile": "a", "prompt": "x", "stream": stream})
    assert metric('xpeft_profile_requests_total{profile="a",tenant="default"}') == 2
    assert metric('xpeft_profile_requests_total{profile="base",tenant="default"}') == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_when_the_store_could_not_be_asked_for_its_version(client, script, stream):
    body = {"profile": "p", "prompt": "a", "stream": stream}
    assert "x-profile-unverified" not in (await client.post(URL, json=body)).headers
    script.lines[0] = script.lines[0]._replace(verified=False)
    assert (await client.post(URL, json=body)).headers["x-profile-unverified"] == "true"
