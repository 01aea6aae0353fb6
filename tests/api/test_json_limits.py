"""How deep and how long what is in a JSON body may be, on every route that takes one."""

from __future__ import annotations

import dataclasses
import json
import threading
import tracemalloc

import pytest

from xpeft_profiles import ProfileKey
from xpeft_server.api.bodies import json_bodies
from xpeft_server.api.bodies.json_counts import check_json_counts
from xpeft_server.api.errors import ApiError
from xpeft_server.api.generation.sampling_wire import MOST_STOP_CHARACTERS, MOST_STOPS
from xpeft_server.api.openai.chat_wire import ChatBody
from xpeft_server.api.openai.completions_wire import CompletionBody
from xpeft_server.api.tuning import jobs
from xpeft_server.api.tuning.wire import TuneBody
from xpeft_server.api.wire import MOST_ITEMS, ClassifyBody
from xpeft_server.cli.serve.tuning_checks import check_examples
from xpeft_server.jobs.errors import TooManyRows
from xpeft_server.jobs.requests import TuningExample, TuningRequest

TUNE = "/v1/profiles/p/tune"
# A body that each route takes.
BODIES = {
    "/v1/classify": {"profile": "p", "input": "a"},
    "/v1/generate": {"profile": "p", "prompt": "a"},
    "/v1/completions": {"model": "p", "prompt": "a"},
    "/v1/chat/completions": {"model": "p", "messages": [{"role": "user", "content": "a"}]},
    TUNE: {"examples": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]},
}
# Every field of them that could hold another value inside it.
DEEP = [
    ("/v1/classify", "profile"),
    ("/v1/classify", "input"),
    ("/v1/classify", "nobody"),
    ("/v1/generate", "prompt"),
    ("/v1/generate", "stop"),
    ("/v1/generate", "seed"),
    ("/v1/completions", "prompt"),
    ("/v1/completions", "metadata"),
    ("/v1/completions", "logit_bias"),
    ("/v1/completions", "stream_options"),
    ("/v1/completions", "suffix"),
    ("/v1/chat/completions", "messages"),
    ("/v1/chat/completions", "tools"),
    ("/v1/chat/completions", "response_format"),
    ("/v1/chat/completions", "metadata"),
    (TUNE, "examples"),
    (TUNE, "labels"),
    (TUNE, "settings"),
]


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"max_body_bytes": 8 << 20})


@pytest.fixture
def engine(engine):
    engine.info = dataclasses.replace(engine.info, generates=True, model_type="llama")

    async def never(request):
        pytest.fail(f"the engine was asked {request!r:.100}")
        yield

    engine.generate = engine.classify = never
    return engine


async def post(client, path, content):
    return await client.post(path, content=content, headers={"content-type": "application/json"})


def nested(depth: int, kind: str) -> str:
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("kind", ["list", "object"])
@pytest.mark.parametrize(("path", "field"), DEEP)
async def test_a_value_as_deep_as_you_like_is_refused_politely(client, path, field, kind):
    for depth in (100, 900, 1000, 1020, 1030, 50_000):
        body = json.dumps({**BODIES[path], field: "DEEP"}).replace('"DEEP"', nested(depth, kind))
        answer = await post(client, path, body)
        assert answer.status_code in (400, 422), (depth, answer.text[:200])
        assert len(answer.content) < 1000


LONG = [
    ("/v1/classify", {"input": ["a"] * (MOST_ITEMS + 1)}),
    ("/v1/classify", {"input": [{"text": "a"}] * (MOST_ITEMS + 1)}),
    ("/v1/classify", {"input": ["a"] * 5}),
    ("/v1/generate", {"stop": ["a"] * (MOST_STOPS + 1)}),
    ("/v1/generate", {"stop": "a" * (MOST_STOP_CHARACTERS + 1)}),
    ("/v1/completions", {"stop": ["a" * (MOST_STOP_CHARACTERS + 1)]}),
    ("/v1/completions", {"prompt": ["a"] * (MOST_ITEMS + 1)}),
    ("/v1/completions", {"prompt": [[1]] * (MOST_ITEMS + 1)}),
    ("/v1/completions", {"prompt": [[1], ["a"] * 100_000]}),
    ("/v1/completions", {"prompt": ["a"] * 5}),
    ("/v1/completions", {"metadata": {str(number): "" for number in range(17)}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * 30_000}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 30_000}]},
    ),
    (TUNE, {"examples": [{"text": "a", "label": "b"}] * 9}),
    (TUNE, {"labels": ["a"] * (MOST_ITEMS + 1)}),
    (TUNE, {"settings": {"description": "a" * 1025}}),
]


@pytest.mark.parametrize(("path", "fields"), LONG, ids=[f"{path} {next(iter(fields))}" for path, fields in LONG])
async def test_a_list_that_is_too_long_is_refused_by_name(client, path, fields):
    answer = await post(client, path, json.dumps({**BODIES[path], **fields}, separators=(",", ":")))
    assert answer.status_code == 422, answer.text[:300]
    assert answer.json()["error"]["param"].startswith(next(iter(fields)))
    assert len(answer.content) < 1000


@pytest.mark.parametrize("path", BODIES)
async def test_a_million_unknown_fields_cost_no_more_than_their_body(client, path):
    body = b"{" + b",".join(b'"x%d":0' % number for number in range(300_000)) + b"}"
    tracemalloc.start()
    answer = await post(client, path, body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.status_code == 422
    assert peak < 40 * len(body)


MESSAGE = {"role": "user", "content": "a"}
PART = {"type": "text", "text": "a"}
ROW = {"text": "a", "label": "b"}
# Far more items than the server takes; its limits are 4 texts and 8 rows.
FAR_TOO_MANY = {
    "texts": ("/v1/classify", ClassifyBody, {"input": ["a"] * 60_000}, "too_many_inputs", (60_000, 4)),
    "pairs": ("/v1/classify", ClassifyBody, {"input": [{"text": "a"}] * 60_000}, "too_many_inputs", (60_000, 4)),
    "prompts": ("/v1/completions", CompletionBody, {"prompt": ["a"] * 60_000}, "too_many_inputs", (60_000, 4)),
    "lists of ids": ("/v1/completions", CompletionBody, {"prompt": [[1]] * 60_000}, "too_many_inputs", (60_000, 4)),
    "messages": ("/v1/chat/completions", ChatBody, {"messages": [MESSAGE] * 30_000}, "invalid_field", (30_000, 2048)),
    "parts": (
        "/v1/chat/completions",
        ChatBody,
        {"messages": [{**MESSAGE, "content": [PART] * 300}] * 100},
        "invalid_field",
        (30_000, 4096),
    ),
    "rows": (TUNE, TuneBody, {"examples": [ROW] * 30_000}, "too_many_rows", (30_000, 8)),
}


@pytest.mark.parametrize("case", FAR_TOO_MANY)
async def test_a_list_of_far_too_many_is_refused_by_its_length_alone(client, monkeypatch, case):
    path, wire_type, fields, code, (count, most) = FAR_TOO_MANY[case]
    monkeypatch.setattr(wire_type, "model_validate", lambda document: pytest.fail("its items were looked at"))
    answer = await post(client, path, json.dumps({**BODIES[path], **fields}, separators=(",", ":")))
    assert answer.status_code == 422
    error = answer.json()["error"]
    (field,) = fields
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, field)
    assert str(count) in error["message"]
    assert f"more than the {most} of one" in error["message"]


MEGABYTES = {
    "empty lists": (b"[" + b"[]," * 1_000_000 + b"[]]", "1000003 lists and objects"),
    "lists in lists": (b"[" + b"[[[]]]," * 100_000 + b"[]]", "300003 lists and objects"),
    "empty objects": (b"[" + b"{}," * 1_000_000 + b"{}]", "1000003 lists and objects"),
    "names": (b"{" + b",".join(b'"x%d":0' % number for number in range(300_000)) + b"}", "300001 strings"),
    "strings": (b"[" + b'"",' * 1_000_000 + b'""]', "1000002 strings"),
    "numbers": (b"[" + b"0," * 1_000_000 + b"0]", "1000000 commas"),
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("kind", MEGABYTES)
async def test_megabytes_that_take_long_to_parse_are_refused_before_they_are(client, monkeypatch, path, kind):
    monkeypatch.setattr(json_bodies.orjson, "loads", lambda _: pytest.fail("they were parsed"))
    value, counted = MEGABYTES[kind]
    answer = await post(client, path, b'{"a":' + value + b"}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_body")
    assert answer.json()["error"]["message"].startswith(f"the body has {counted}, more than the ")


async def test_what_is_inside_of_strings_is_not_counted(client):
    for text in ("[" * 2_000_000, '",{[\\' * 400_000, "\\" * 2_000_000, '"' * 2_000_000 + "\\"):
        answer = await post(client, "/v1/classify", json.dumps({"profile": "p", "input": text, "nobody": 1}))
        assert answer.json()["error"]["param"] == "nobody", answer.text


async def test_who_allows_more_items_allows_what_they_are_made_of():
    rows = json.dumps({"examples": [{"text": "a", "label": "b", "split": "train"}] * 100_000}).encode()
    check_json_counts(rows, 100_000)
    with pytest.raises(ApiError, match="the body has 600001 strings, more than the 139072 of one request"):
        check_json_counts(rows, 1000)


async def test_too_many_rows_are_refused_in_the_tuners_words(client):
    rows = (TuningExample("a", "b"),) * 9
    with pytest.raises(TooManyRows) as tuners:
        check_examples(TuningRequest(ProfileKey("acme", "p"), rows, None, {}), 8)
    error = (await post(client, TUNE, json.dumps({"examples": [ROW] * 9}))).json()["error"]
    assert (error["message"], error["code"], error["param"]) == (str(tuners.value), "too_many_rows", "examples")


async def test_examples_become_rows_beside_the_event_loop(client, monkeypatch):
    threads = set()

    def example(row, real=jobs._example):
        threads.add(threading.current_thread())
        return real(row)

    monkeypatch.setattr(jobs, "_example", example)
    assert (await post(client, TUNE, json.dumps(BODIES[TUNE]))).status_code == 202
    assert threads
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("value", [1, [], {"x" * 5000: 1}])
async def test_a_key_of_a_megabyte_does_not_travel_back(client, path, value):
    answer = await post(client, path, json.dumps({**BODIES[path], "metadata": {"k" * (1 << 20): value}}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_field")
    assert answer.json()["error"]["param"].startswith("metadata.kkk")
    assert len(answer.content) < 1000
