"""POST /v1/completions: OpenAI's shape, one prompt or several, whole and as a stream."""

from __future__ import annotations

import asyncio
import re
import time

import orjson
import pytest

from xpeft_server.api import event_stream
from xpeft_server.engine.requests import ChosenToken, Finished, LikelyToken, Piece, Started

URL = "/v1/completions"
VERSION = "sha256:" + "cd" * 32
ID = re.compile(rb"cmpl-[0-9a-f]{24}")
CREATED = re.compile(rb'"created":[0-9]+')
THE = LikelyToken(5, " the", b" the", -0.25)
A = LikelyToken(6, " a", b" a", -1.5)
HALF = LikelyToken(7, "�", b"\xc3", -2.0)
REST = LikelyToken(8, "�", b"\xbc", -0.5)


async def test_an_answer_has_openais_shape(client, usage):
    began = int(time.time())
    answer = await client.post(URL, json={"model": "support", "prompt": "Say"})
    body = answer.json()
    assert ID.fullmatch(body.pop("id").encode())
    assert began <= body.pop("created") <= time.time()
    assert body == {
        "object": "text_completion",
        "model": "support",
        "choices": [{"text": "Hello", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage(3, 2),
    }
    assert answer.headers["x-profile-version"] == VERSION
    assert (float(answer.headers["x-queue-time"]), float(answer.headers["x-inference-time"])) == (0.001, 0.002)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("one", ["one"]),
        (["one"], ["one"]),
        (["one", "two"], ["one", "two"]),
        ([7], [(7,)]),
        ([7, 0, 8], [(7, 0, 8)]),
        ([[7, 8]], [(7, 8)]),
        ([[7, 8], [0]], [(7, 8), (0,)]),
    ],
)
async def test_every_form_of_prompt_reaches_the_engine(client, script, given, seen):
    answer = await client.post(URL, json={"model": "p", "prompt": given})
    assert [asked.prompt for asked in script.asked] == seen
    assert [choice["index"] for choice in answer.json()["choices"]] == list(range(len(seen)))


async def test_prompts_of_one_request_are_one_group_whatever_id_the_client_chooses(client, script):
    for prompts in (["a", "b", "c"], ["a", "b"], ["a"]):
        await client.post(URL, json={"model": "p", "prompt": prompts}, headers={"x-request-id": "mine"})
    first, *others, alone = [asked.group for asked in script.asked]
    assert others[:2] == [first, first]
    assert others[2] == others[3]
    assert (first.size, others[2].size) == (3, 2)
    assert len({first.id, others[2].id, "mine"}) == 3
    assert alone is None


async def test_base_asks_for_the_bare_model(client, script):
    answer = await client.post(URL, json={"model": "base", "prompt": "a"})
    assert (answer.json()["model"], script.asked[0].profile) == ("base", None)
    assert "x-profile-version" not in answer.headers


async def test_choices_stand_in_the_order_of_the_prompts_whatever_comes_first(post, script, metric, usage):
    first, second = asyncio.Event(), asyncio.Event()
    script.lines.insert(1, first)
    other = "sha256:" + "ef" * 32
    script.of["b"] = [Started(other, 0.5), second, Piece("second"), Finished("length", 5, 7, 0.25, 4)]
    asking = post(URL, model="p", prompt=["a", "b"])
    await script.waiting.wait()
    second.set()
    await asyncio.sleep(0)
    first.set()
    body = orjson.loads(await asking.part())
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in body["choices"]] == [
        (0, "Hello", "stop"),
        (1, "second", "length"),
    ]
    assert body["usage"] == usage(8, 9, cached=4)
    headers = dict(asking.start["headers"])
    assert headers[b"x-profile-version"].decode() == f"{VERSION}, {other}"
    assert (float(headers[b"x-queue-time"]), float(headers[b"x-inference-time"])) == (0.5, 0.25)
    assert metric('xpeft_profile_requests_total{profile="p",tenant="default"}') == 1


async def test_a_stream_is_this_byte_for_byte(client, metric):
    answer = await client.post(URL, json={"model": "p", "prompt": "a", "stream": True})
    assert answer.headers["content-type"] == "text/event-stream"
    assert len(set(ID.findall(answer.content))) == len(set(CREATED.findall(answer.content))) == 1
    head = b'data: {"id":"ID","object":"text_completion","created":0,"model":"p","choices":[{'
    choices = [
        b'"text":"Hel","index":0,"logprobs":null,"finish_reason":null}',
        b'"text":"lo","index":0,"logprobs":null,"finish_reason":null}',
        b'"text":"","index":0,"logprobs":null,"finish_reason":"stop"}',
    ]
    told = b"".join(head + choice + b"]}\n\n" for choice in choices) + b"data: [DONE]\n\n"
    assert CREATED.sub(b'"created":0', ID.sub(b"ID", answer.content)) == told
    assert answer.headers["x-profile-version"] == VERSION
    assert metric('xpeft_profile_requests_total{profile="p",tenant="default"}') == 1


async def test_the_usage_comes_last_if_it_is_asked_for(client, events, usage):
    body = {"model": "p", "prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events(await client.post(URL, json=body))
    assert [chunk["usage"] for chunk in chunks] == [None] * 6
    assert last["choices"] == []
    assert last["usage"] == usage(6, 4)
    assert {key: last[key] for key in ("id", "object", "created", "model")}.items() <= chunks[0].items()


async def test_the_usage_of_each_choice_so_far_comes_with_every_chunk_if_it_is_asked_for(client, events, script, usage):
    script.of["b"] = [Started(VERSION, 0.0, True, 7, 5), Piece("x", (), 3), Finished("length", 7, 4, 0.1, 5)]
    script.lines = [
        Started(VERSION, 0.0, True, 3, 1),
        Piece("Hel", (), 1),
        Piece("lo", (), 2),
        Finished("stop", 3, 3, 0.1, 1),
    ]
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "p", "prompt": ["a", "b"], "stream": True, "stream_options": options}
    *chunks, last = events(await client.post(URL, json=body))
    told = [[chunk["usage"] for chunk in chunks if chunk["choices"][0]["index"] == index] for index in (0, 1)]
    assert told[0] == [usage(3, generated, cached=1) for generated in (1, 2, 3)]
    assert told[1] == [usage(7, generated, cached=5) for generated in (3, 4)]
    assert last["usage"] == usage(10, 7, cached=6)
    options["include_usage"] = False
    assert not any("usage" in chunk for chunk in events(await client.post(URL, json=body)))


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"include_obfuscation": False}, None])
async def test_else_no_chunk_tells_the_usage(client, events, options):
    body = {"model": "p", "prompt": "a", "stream": True, "stream_options": options}
    assert all("usage" not in chunk for chunk in events(await client.post(URL, json=body)))


@pytest.mark.parametrize("stream", [False, None])
async def test_options_of_a_stream_need_a_stream(client, script, stream):
    body = {"model": "p", "prompt": "a", "stream": stream, "stream_options": {"include_usage": True}}
    error = (await client.post(URL, json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_field", "stream_options")
    assert script.asked == []


async def test_streams_of_several_prompts_are_interleaved_as_they_come(post, script):
    gates = {prompt: [asyncio.Event(), asyncio.Event()] for prompt in "ab"}
    for prompt, (first, second) in gates.items():
        started, piece, end = Started(VERSION, 0.0), Piece(prompt), Finished("stop", 1, 1, 0.0)
        script.of[prompt] = [started, first, piece, second, piece, end]
    stream = post(URL, model="p", prompt=["a", "b"], stream=True)
    for prompt, gate in [("b", 0), ("a", 0), ("b", 1)]:
        gates[prompt][gate].set()
        assert b'"text":"%s","index":%d' % (prompt.encode(), "ab".index(prompt)) in await stream.part()
    end = await stream.part()
    assert b'"index":1,"logprobs":null,"finish_reason":"stop"' in end
    assert b"[DONE]" not in end
    gates["a"][1].set()
    assert b'"text":"a","index":0' in await stream.part()
    assert (await stream.part()).endswith(b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')


async def test_a_stream_of_several_prompts_begins_when_all_answers_have(post, script):
    gate = asyncio.Event()
    script.of["b"] = [gate, *script.lines]
    stream = post(URL, model="p", prompt=["a", "b"], stream=True)
    await script.waiting.wait()
    assert stream.start is None
    gate.set()
    texts = [re.search(rb'"text":"(\w*)","index":(\d)', await stream.part()).groups() for _ in range(6)]
    assert [text for text, index in texts if index == b"0"] == [text for text, index in texts if index == b"1"]
    assert stream.start["status"] == 200


async def test_a_stream_begins_after_a_long_silence_and_claims_no_version_for_what_has_not_begun(
    post, script, monkeypatch
):
    monkeypatch.setattr(event_stream, "_SILENT_SECONDS", 0.01)
    gate = asyncio.Event()
    script.of["b"] = [gate, Started("sha256:" + "ef" * 32, 0.5), *script.lines[1:]]
    stream = post(URL, model="p", prompt=["a", "b"], stream=True)
    parts = [await stream.part() for _ in range(3)]
    assert [re.search(rb'"text":"(\w*)","index":(\d)', part).groups() for part in parts] == [
        (b"Hel", b"0"),
        (b"lo", b"0"),
        (b"", b"0"),
    ]
    assert stream.start["status"] == 200
    assert not {b"x-profile-version", b"x-queue-time"} & dict(stream.start["headers"]).keys()
    gate.set()
    while b"[DONE]" not in parts[-1]:
        parts.append(await stream.part())
    texts = re.findall(rb'"text":"(\w*)","index":1', b"".join(parts))
    assert texts == [b"Hel", b"lo", b""]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (URL, {"model": "p", "prompt": "a"}),
        ("/v1/generate", {"profile": "p", "prompt": "a"}),
        ("/v1/chat/completions", {"model": "p", "messages": [{"role": "user", "content": "a"}]}),
    ],
)
async def test_who_waits_long_for_a_first_token_hears_that_somebody_is_there(post, script, monkeypatch, url, body):
    monkeypatch.setattr(event_stream, "_SILENT_SECONDS", 0.01)
    gate = script.hold(after=0)
    stream = post(url, stream=True, **body)
    assert [await stream.part() for _ in range(2)] == [b": still there\n\n"] * 2
    gate.set()
    while b"[DONE]" not in await stream.part():
        pass
    assert b"x-profile-version" not in dict(stream.start["headers"])


def with_logprobs(script):
    script.lines[1:] = [
        Piece(" a", (ChosenToken(A, (THE,)),)),
        Piece("ü the", (ChosenToken(HALF, (HALF,)), ChosenToken(REST, ()), ChosenToken(THE, (THE, A)))),
        Finished("stop", 3, 4, 0.002),
    ]


LOGPROBS = {
    "tokens": [" a", "bytes:\\xc3", "bytes:\\xbc", " the"],
    "token_logprobs": [-1.5, -2.0, -0.5, -0.25],
    "top_logprobs": [
        {" the": -0.25, " a": -1.5},
        {"bytes:\\xc3": -2.0},
        {"bytes:\\xbc": -0.5},
        {" the": -0.25, " a": -1.5},
    ],
    "text_offset": [0, 2, 2, 3],
}


async def test_logprobs_are_lists_with_an_entry_a_token(client, script):
    with_logprobs(script)
    (choice,) = (await client.post(URL, json={"model": "p", "prompt": "x", "logprobs": 5})).json()["choices"]
    assert (choice["text"], choice["logprobs"]) == (" aü the", LOGPROBS)
    assert script.asked[0].sampling.logprobs == 5


async def test_logprobs_of_a_stream_are_the_same_lists_in_parts(client, script, events):
    with_logprobs(script)
    body = {"model": "p", "prompt": ["x", "y"], "logprobs": 0, "stream": True}
    choices = [choice for chunk in events(await client.post(URL, json=body)) for choice in chunk["choices"]]
    for index in range(2):
        *parts, end = [choice["logprobs"] for choice in choices if choice["index"] == index]
        assert end is None
        assert {name: [entry for part in parts for entry in part[name]] for name in LOGPROBS} == LOGPROBS
    assert script.asked[0].sampling.logprobs == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_offsets_of_logprobs_do_not_wait_for_text_that_is_held_back(client, script, events, stream):
    words = [(" Shipped ", " Shipped "), ("on", ""), (" Oct", ""), ("\xfcb", ""), (" 24", "on Oct\xfcb 24"), (".", ".")]
    script.lines[1:] = [
        *(Piece(shown, (ChosenToken(LikelyToken(5, word, word.encode(), -1.0), ()),)) for word, shown in words),
        Finished("stop", 3, 6, 0.002),
    ]
    body = {"model": "p", "prompt": "x", "logprobs": 0, "stop": ["nowhere", "on Oct\xfcb 25"], "stream": stream}
    answer = await client.post(URL, json=body)
    told = [
        choice["logprobs"] for each in (events(answer) if stream else [answer.json()]) for choice in each["choices"]
    ]
    offsets = [offset for part in told if part for offset in part["text_offset"]]
    assert offsets == [0, 9, 11, 15, 17, 20]


@pytest.mark.parametrize("stream", [False, True])
async def test_offsets_of_logprobs_do_not_count_the_name_of_a_special_token(client, script, events, stream):
    told = [(" a", " a", False), (">", "", False), ("<s>", "", True), (">", "", False), (" a", ">> a", False)]
    script.lines[1:] = [
        *(
            Piece(shown, (ChosenToken(LikelyToken(5, name, name.encode(), -1.0), (), special),))
            for name, shown, special in told
        ),
        Finished("stop", 3, 5, 0.002),
    ]
    body = {"model": "p", "prompt": "x", "logprobs": 0, "stop": ">>>", "stream": stream}
    answer = await client.post(URL, json=body)
    parts = [
        choice["logprobs"] for each in (events(answer) if stream else [answer.json()]) for choice in each["choices"]
    ]
    assert [name for part in parts if part for name in part["tokens"]] == [name for name, _, _ in told]
    assert [offset for part in parts if part for offset in part["text_offset"]] == [0, 2, 3, 3, 4]


@pytest.mark.parametrize("logprobs", [-1, 6, True, "1"])
async def test_more_than_five_logprobs_are_422(client, logprobs):
    answer = await client.post(URL, json={"model": "p", "prompt": "x", "logprobs": logprobs})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "logprobs")
