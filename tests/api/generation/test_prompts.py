"""Prompts that are refused before they reach the engine."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from xpeft_server.api.errors import ApiError
from xpeft_server.api.openai.chat_wire import MOST_MESSAGES, MOST_PARTS, ChatBody, check_counts
from xpeft_server.api.openai.completions_wire import CompletionBody

BAD = {
    "missing": ({}, "missing_field", "prompt"),
    "null": ({"prompt": None}, "invalid_field", "prompt"),
    "a number": ({"prompt": 1}, "invalid_field", "prompt"),
    "an object": ({"prompt": {"text": "a"}}, "invalid_field", "prompt"),
    "true": ({"prompt": True}, "invalid_field", "prompt"),
    "empty": ({"prompt": ""}, "invalid_field", "prompt"),
    "no tokens": ({"prompt": []}, "invalid_field", "prompt"),
    "a negative token": ({"prompt": [1, -1]}, "invalid_field", "prompt[1]"),
    "a token of half": ({"prompt": [1, 0.5]}, "invalid_field", "prompt[1]"),
    "a token that is true": ({"prompt": [1, True]}, "invalid_field", "prompt[1]"),
    "a token beyond all": ({"prompt": [1 << 31]}, "invalid_field", "prompt[0]"),
    "a text among tokens": ({"prompt": [1, "a"]}, "invalid_field", "prompt[1]"),
}
ONLY_OURS = {"texts": ({"prompt": ["a"]}, "invalid_field", "prompt[0]")}
ONLY_OPENAIS = {
    "an empty text": ({"prompt": ["a", ""]}, "invalid_field", "prompt[1]"),
    "a token among texts": ({"prompt": ["a", 1]}, "invalid_field", "prompt[1]"),
    "a list among texts": ({"prompt": ["a", [1]]}, "invalid_field", "prompt[1]"),
    "an empty list": ({"prompt": [[1], []]}, "invalid_field", "prompt[1]"),
    "a text among lists": ({"prompt": [[1], "a"]}, "invalid_field", "prompt[1]"),
    "a bad token in a list": ({"prompt": [[1], [2, -2]]}, "invalid_field", "prompt[1][1]"),
    "too many": ({"prompt": ["a"] * 5}, "too_many_inputs", "prompt"),
    "too many lists": ({"prompt": [[1]] * 5}, "too_many_inputs", "prompt"),
}


async def refused(client, script, path, fields, code, param):
    answer = await client.post(path, json={"model": "p", **fields})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"].startswith(param)
    assert script.asked == []


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("path", ["/v1/generate", "/v1/completions"])
async def test_what_is_no_prompt_is_422_and_named(client, script, path, case):
    await refused(client, script, path, *BAD[case])


@pytest.mark.parametrize("case", ONLY_OURS)
async def test_our_route_takes_one_prompt(client, script, case):
    await refused(client, script, "/v1/generate", *ONLY_OURS[case])


@pytest.mark.parametrize("case", ONLY_OPENAIS)
async def test_one_bad_prompt_of_several_is_named_by_its_place(client, script, case):
    await refused(client, script, "/v1/completions", *ONLY_OPENAIS[case])


BAD_MESSAGES = {
    "missing": ({}, "missing_field", "messages"),
    "null": ({"messages": None}, "invalid_field", "messages"),
    "a text": ({"messages": "a"}, "invalid_field", "messages"),
    "none": ({"messages": []}, "invalid_field", "messages"),
    "a text among them": ({"messages": ["a"]}, "invalid_field", "messages[0]"),
    "no role": ({"messages": [{"content": "a"}]}, "missing_field", "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "missing_field", "messages[0].content"),
    "an unknown role": ({"messages": [{"role": "bot", "content": "a"}]}, "invalid_field", "messages[0].role"),
    "a role of none": ({"messages": [{"role": None, "content": "a"}]}, "invalid_field", "messages[0].role"),
    "an unknown field": ({"messages": [{"role": "user", "content": "a", "x": 1}]}, "unknown_field", "messages[0].x"),
    "content null": ({"messages": [{"role": "user", "content": None}]}, "invalid_field", "messages[0].content"),
    "content a number": ({"messages": [{"role": "user", "content": 1}]}, "invalid_field", "messages[0].content"),
    "no parts": ({"messages": [{"role": "user", "content": []}]}, "invalid_field", "messages[0].content"),
}
TEXT = {"type": "text", "text": "a"}
BAD_PARTS = {
    "a text": ("a", "invalid_field", ""),
    "without a type": ({"text": "a"}, "missing_field", ".type"),
    "a type of three": ({"type": 3, "text": "a"}, "invalid_field", ".type"),
    "without a text": ({"type": "text"}, "missing_field", ".text"),
    "a text of three": ({"type": "text", "text": 3}, "invalid_field", ".text"),
    "with more": ({**TEXT, "image_url": "x"}, "unknown_field", ".image_url"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
async def test_what_is_no_message_is_422_and_named(client, script, case):
    await refused_chat(client, script, *BAD_MESSAGES[case])


@pytest.mark.parametrize("case", BAD_PARTS)
async def test_what_is_no_part_is_422_and_named(client, script, case):
    part, code, place = BAD_PARTS[case]
    fields = {"messages": [{"role": "user", "content": [TEXT, part]}]}
    await refused_chat(client, script, fields, code, f"messages[0].content[1]{place}")


async def refused_chat(client, script, fields, code, param):
    answer = await client.post("/v1/chat/completions", json={"model": "p", **fields})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert param in error["message"]
    assert script.asked == []


@pytest.mark.parametrize("name", ["", "../x", "a b", "p" * 129])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/generate", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
async def test_what_is_no_name_is_no_model(client, script, path, fields, name):
    answer = await client.post(path, json={"model": name, **fields})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_name")
    assert answer.json()["error"]["param"] == "model"
    assert script.asked == []


@pytest.mark.parametrize("item", ["a", [1]])
def test_a_list_of_prompts_without_end_is_not_read_to_its_end(item):
    with pytest.raises(ValidationError, match="at most 65536") as refused:
        CompletionBody.model_validate({"model": "p", "prompt": [item] * 65537})
    assert refused.value.error_count() == 1


def test_a_chat_without_end_is_not_read_to_its_end():
    message = {"role": "user", "content": "a"}
    with pytest.raises(ValidationError, match="at most 2048"):
        ChatBody.model_validate({"model": "p", "messages": [message] * 2049})


def test_a_chat_may_have_as_many_messages_and_parts_as_its_limits_say():
    half = {"role": "user", "content": [TEXT] * (MOST_PARTS // 2)}
    check_counts({"messages": [{"role": "user", "content": "a"}] * MOST_MESSAGES})
    check_counts({"messages": [half, half]})
    with pytest.raises(ApiError, match="messages have 4097 parts, more than the 4096"):
        check_counts({"messages": [half, half, {"role": "user", "content": [TEXT]}]})


async def test_more_token_ids_than_texts_are_allowed_are_one_prompt(client, script):
    answer = await client.post("/v1/completions", json={"model": "p", "prompt": [1] * 9})
    assert answer.status_code == 200
    assert script.asked[0].prompt == (1,) * 9


def test_of_many_bad_messages_only_the_first_costs_anything():
    with pytest.raises(ValidationError) as refused:
        ChatBody.model_validate({"model": "p", "messages": [1] * 1000})
    assert refused.value.error_count() == 1
