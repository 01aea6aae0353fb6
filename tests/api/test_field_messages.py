"""What a 422 says of a field: in JSON's words, as the client sent it."""

from __future__ import annotations

import orjson
import pytest

from xpeft_server.api.bodies.json_bodies import parse_json
from xpeft_server.api.errors import ApiError
from xpeft_server.api.generation.wire import GenerateBody
from xpeft_server.api.openai.chat_wire import ChatBody
from xpeft_server.api.openai.completions_wire import CompletionBody
from xpeft_server.api.tuning.wire import TuneBody
from xpeft_server.api.wire import ClassifyBody

BODIES = {
    ClassifyBody: {"profile": "p", "input": "a"},
    GenerateBody: {"profile": "p", "prompt": "a"},
    CompletionBody: {"model": "p", "prompt": "a"},
    ChatBody: {"model": "p", "messages": [{"role": "user", "content": "a"}]},
    TuneBody: {"examples": [{"text": "a", "label": "b"}]},
}
CASES = [
    (ClassifyBody, {"input": ["a", {"text": "b"}]}, 'input[1]: must be a string, not {"text": "b"}'),
    (ClassifyBody, {"input": [{"text": "a"}, "b"]}, 'input[1]: must be an object, not "b"'),
    (ClassifyBody, {"input": []}, "input: must have at least 1 item, not []"),
    (ClassifyBody, {"input": ""}, 'input: must have at least 1 character, not ""'),
    (ClassifyBody, {"truncate": None}, "truncate: must be true or false, not null"),
    (ClassifyBody, {"profile": True}, "profile: must be a string, not true"),
    (ClassifyBody, {"profile": ["é", None, 1.5]}, 'profile: must be a string, not ["é", null, 1.5]'),
    (GenerateBody, {"max_new_tokens": 1.5}, "max_new_tokens: must be an integer, not 1.5"),
    (GenerateBody, {"max_new_tokens": True}, "max_new_tokens: must be an integer, not true"),
    (GenerateBody, {"max_new_tokens": 1e10}, "max_new_tokens: must be less than 2147483648, not 10000000000"),
    (GenerateBody, {"temperature": "1"}, 'temperature: must be a number, not "1"'),
    (GenerateBody, {"top_p": 2}, "top_p: must be less than or equal to 1, not 2"),
    (GenerateBody, {"prompt": [4.0]}, "prompt[0]: must be an integer, not 4.0"),
    (CompletionBody, {"metadata": 3}, "metadata: must be an object, not 3"),
    (CompletionBody, {"n": True}, "n: true is not supported; leave it out or send 1"),
    (ChatBody, {"messages": {}}, "messages: must be an array, not {}"),
    (ChatBody, {"top_logprobs": 2}, "top_logprobs: needs logprobs: true, not 2"),
    (TuneBody, {"settings": {"kind": "x"}}, 'settings.kind: must be "hard" or "soft", not "x"'),
]


@pytest.mark.parametrize(("wire_type", "wrong", "message"), CASES)
def test_a_wrong_field_is_told_in_the_words_of_json(wire_type, wrong, message):
    with pytest.raises(ApiError) as refused:
        parse_json(orjson.dumps({**BODIES[wire_type], **wrong}), wire_type)
    assert refused.value.message == message


@pytest.mark.parametrize("value", ["é" * 3000, '"' * 3000, ["\0" * 3000] * 9, {"x" * 3000: "y" * 3000}, int("9" * 19)])
def test_a_long_value_is_cut(value):
    with pytest.raises(ApiError) as refused:
        parse_json(orjson.dumps({"profile": "p", "input": "a", "truncate": value}), ClassifyBody)
    assert len(refused.value.message) < 700


@pytest.mark.parametrize(
    ("wire_type", "field", "value"),
    [
        (GenerateBody, "max_new_tokens", 4),
        (GenerateBody, "seed", -1),
        (GenerateBody, "top_k", 0),
        (CompletionBody, "logprobs", 2),
        (ChatBody, "max_completion_tokens", 8),
    ],
)
def test_an_integer_may_be_written_with_a_fraction_of_zero(wire_type, field, value):
    body = parse_json(orjson.dumps({**BODIES[wire_type], field: float(value)}), wire_type)
    taken = getattr(body, field)
    assert (type(taken), taken) == (int, value)
