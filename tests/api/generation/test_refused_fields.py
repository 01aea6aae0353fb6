"""Fields of OpenAI's that are not supported: refused by name if they ask for something."""

from __future__ import annotations

import pytest

from xpeft_server.api.bodies.json_values import shown_json

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BODIES = {
    COMPLETIONS: {"model": "p", "prompt": "a"},
    CHAT: {"model": "p", "messages": [{"role": "user", "content": "a"}]},
}
# Field: what asks for nothing, what asks for something.
BOTH = {
    "n": ([1], [0, 2, True, "1"]),
    "frequency_penalty": ([0, 0.0], [0.5, -1, False]),
    "presence_penalty": ([0, 0.0], [0.5, -1]),
    "logit_bias": ([{}], [{"5": 1}, []]),
    "store": ([False], [True, 0]),
    "service_tier": (["auto", "default"], ["flex", "priority", 1]),
}
OF_COMPLETIONS = {
    **BOTH,
    "best_of": ([1], [2, True]),
    "suffix": ([""], [" end"]),
}
OF_CHAT = {
    **BOTH,
    "tools": ([[]], [[{"type": "function"}], {}]),
    "tool_choice": (["none", "auto"], ["required", {"type": "function"}]),
    "functions": ([[]], [[{"name": "f"}]]),
    "function_call": (["none", "auto"], [{"name": "f"}]),
    "response_format": ([{"type": "text"}], [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, {}]),
    "modalities": ([["text"]], [["text", "audio"], ["audio"], []]),
    "audio": ([], [{"voice": "alloy", "format": "mp3"}, {}]),
    "moderation": ([], [{"model": "m"}]),
    "prediction": ([], [{"type": "content", "content": "a"}]),
    "reasoning_effort": (["none"], ["low", "medium"]),
    "verbosity": (["medium"], ["low"]),
    "web_search_options": ([], [{}]),
}
VALUES = {COMPLETIONS: OF_COMPLETIONS, CHAT: OF_CHAT}
FIELDS = [(path, field) for path, fields in VALUES.items() for field in fields]
MESSAGE = {"role": "user", "content": "a"}


async def refused(client, script, path, fields, param):
    answer = await client.post(path, json={**BODIES[path], **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("unsupported_parameter", "invalid_request_error", param)
    assert error["message"].startswith(f"{param}: ")
    assert "is not supported" in error["message"]
    assert script.asked == []
    return error["message"]


@pytest.mark.parametrize(("path", "field"), FIELDS)
async def test_a_field_that_asks_for_something_is_refused_by_name(client, script, path, field):
    for value in VALUES[path][field][1]:
        message = await refused(client, script, path, {field: value}, field)
        assert message.startswith(f"{field}: {shown_json(value)} is not supported")


@pytest.mark.parametrize(("path", "field"), FIELDS)
async def test_a_field_that_asks_for_nothing_is_ignored(client, script, path, field):
    for value in (None, *VALUES[path][field][0]):
        assert (await client.post(path, json={**BODIES[path], field: value})).status_code == 200, value
    assert len(set(script.asked)) == 1


async def test_a_refusal_says_what_to_send_instead(client, script):
    assert await refused(client, script, CHAT, {"n": 3}, "n") == "n: 3 is not supported; leave it out or send 1"
    message = await refused(client, script, CHAT, {"audio": 3}, "audio")
    assert message == "audio: 3 is not supported; leave it out"


async def test_a_hostile_value_does_not_travel_back(client):
    answer = await client.post(CHAT, json={**BODIES[CHAT], "tools": ["x" * 3000]})
    assert (answer.status_code, len(answer.content) < 500) == (400, True)
    part = {"type": "x" * 3000}
    answer = await client.post(CHAT, json={"model": "p", "messages": [{"role": "user", "content": [part]}]})
    assert (answer.status_code, len(answer.content) < 500) == (400, True)


@pytest.mark.parametrize("path", BODIES)
async def test_fields_that_change_nothing_are_ignored(client, script, path):
    fields = {"user": "u-1", "metadata": {"a": "b"}}
    if path == CHAT:
        fields |= {
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "prompt_cache_options": {"mode": "implicit"},
            "parallel_tool_calls": False,
        }
    for names in (fields, dict.fromkeys(fields)):
        assert (await client.post(path, json={**BODIES[path], **names})).status_code == 200
    assert len(set(script.asked)) == 1


@pytest.mark.parametrize("path", BODIES)
async def test_an_ignored_field_still_has_a_type(client, path):
    for field, value in {"user": 1, "metadata": [], "stream_options": True}.items():
        answer = await client.post(path, json={**BODIES[path], "stream": True, field: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "tool", "content": "a", "tool_call_id": "c"}, "role"),
        ({"role": "function", "content": "a", "name": "f"}, "role"),
        ({**MESSAGE, "name": "Ann"}, "name"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}, "tool_calls"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "content": None, "refusal": "No."}, "refusal"),
        ({"role": "assistant", "content": "a", "audio": {"id": "x"}}, "audio"),
        ({"role": "assistant", "content": "a", "annotations": [{}]}, "annotations"),
        (
            {"role": "assistant", "content": "a", "provider_specific_fields": {"refusal": "No."}},
            "provider_specific_fields",
        ),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}, "content[1]"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "content[0]"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, "content[0]"),
    ],
)
async def test_a_message_that_asks_for_something_is_refused_by_its_place(client, script, message, place):
    await refused(client, script, CHAT, {"messages": [MESSAGE, message]}, f"messages[1].{place}")
