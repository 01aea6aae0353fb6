"""The fields that the three routes share: their defaults, what reaches the engine, and their ranges."""

from __future__ import annotations

import json
import re

import pytest

from xpeft_server.engine.requests import SamplingRule

ROUTES = {
    "/v1/generate": {"profile": "p", "prompt": "a"},
    "/v1/completions": {"model": "p", "prompt": "a"},
    "/v1/chat/completions": {"model": "p", "messages": [{"role": "user", "content": "a"}]},
}
LIMIT = {
    "/v1/generate": "max_new_tokens",
    "/v1/completions": "max_tokens",
    "/v1/chat/completions": "max_completion_tokens",
}
OPENAI = ["/v1/completions", "/v1/chat/completions"]


@pytest.mark.parametrize(
    ("route", "temperature", "limit"),
    [("/v1/generate", 0.0, 64), ("/v1/completions", 1.0, 16), ("/v1/chat/completions", 1.0, None)],
)
async def test_what_is_left_out_is_the_default(client, script, route, temperature, limit):
    assert (await client.post(route, json=ROUTES[route])).status_code == 200
    (asked,) = script.asked
    assert asked.sampling == SamplingRule(temperature=temperature)
    assert (asked.max_new_tokens, asked.seed, asked.stop) == (limit, None, ())


@pytest.mark.parametrize("route", ROUTES)
async def test_what_is_sent_reaches_the_engine(client, script, route):
    fields = {
        "temperature": 2,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.5,
        "seed": -3,
        "stop": ["\n", "END"],
        LIMIT[route]: 7,
    }
    assert (await client.post(route, json={**ROUTES[route], **fields})).status_code == 200
    (asked,) = script.asked
    assert asked.sampling == SamplingRule(repetition_penalty=1.5, temperature=2.0, top_k=40, top_p=0.5, min_p=0.05)
    assert (asked.max_new_tokens, asked.seed, asked.stop) == (7, -3, ("\n", "END"))


@pytest.mark.parametrize(("given", "seen"), [("END", ("END",)), ([], ()), (["a"] * 8, ("a",) * 8), (None, ())])
@pytest.mark.parametrize("route", ROUTES)
async def test_stop_is_a_text_or_up_to_eight(client, script, route, given, seen):
    assert (await client.post(route, json={**ROUTES[route], "stop": given})).status_code == 200
    assert script.asked[0].stop == seen


EDGES = {
    "temperature": [0, 1e300],
    "top_p": [0, 1e-9, 1],
    "top_k": [-1, 0, (1 << 31) - 1],
    "min_p": [0, 1],
    "repetition_penalty": [1e-9, 100],
    "seed": [-(1 << 63), (1 << 63) - 1],
    "limit": [1, (1 << 31) - 1],
}


@pytest.mark.parametrize("field", EDGES)
@pytest.mark.parametrize("route", ROUTES)
async def test_the_edges_of_a_range_are_taken(client, route, field):
    for value in EDGES[field]:
        name = LIMIT[route] if field == "limit" else field
        assert (await client.post(route, json={**ROUTES[route], name: value})).status_code == 200, value


BAD = [
    ("temperature", -0.001),
    ("temperature", "1"),
    ("temperature", True),
    ("top_p", -0.001),
    ("top_p", 1.001),
    ("top_p", "all"),
    ("top_k", -2),
    ("top_k", 1.5),
    ("top_k", 1 << 31),
    ("min_p", -0.001),
    ("min_p", 1.001),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("repetition_penalty", []),
    ("seed", 1 << 63),
    ("seed", 0.5),
    ("seed", "7"),
    ("stop", ""),
    ("stop", 3),
    ("stop", ["a"] * 9),
    ("stop", {}),
    ("limit", 0),
    ("limit", -5),
    ("limit", 2.5),
    ("limit", 1 << 31),
    ("stream", 1),
    ("stream", "yes"),
]


@pytest.mark.parametrize(("field", "value"), BAD)
@pytest.mark.parametrize("route", ROUTES)
async def test_what_is_out_of_range_is_422_and_names_field_and_value(client, script, route, field, value):
    name = LIMIT[route] if field == "limit" else field
    answer = await client.post(route, json={**ROUTES[route], name: value})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("invalid_field", name, "invalid_request_error")
    assert error["message"].startswith(f"{name}: ")
    assert json.dumps(value)[:6] in error["message"]
    assert script.asked == []


@pytest.mark.parametrize("route", ROUTES)
async def test_an_empty_stop_is_named_by_its_place(client, route):
    error = (await client.post(route, json={**ROUTES[route], "stop": ["a", ""]})).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_field", "stop[1]")


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity"])
async def test_a_number_that_is_not_finite_is_no_json(client, number):
    body = f'{{"profile":"p","prompt":"a","temperature":{number}}}'
    answer = await client.post("/v1/generate", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "field", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "stream"]
)
async def test_null_is_no_number_of_ours(client, field):
    answer = await client.post("/v1/generate", json={**ROUTES["/v1/generate"], field: None})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)


@pytest.mark.parametrize("route", OPENAI)
async def test_null_stands_for_the_default_in_openais_shape(client, script, route):
    names = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "stream", "max_tokens"]
    assert (await client.post(route, json=ROUTES[route])).status_code == 200
    nothing = {**ROUTES[route], **dict.fromkeys([*names, "logprobs", "stream_options"])}
    assert (await client.post(route, json=nothing)).status_code == 200
    assert script.asked[0] == script.asked[1]


@pytest.mark.parametrize("route", ROUTES)
async def test_an_unknown_field_is_422(client, script, route):
    for value in (1, None):
        answer = await client.post(route, json={**ROUTES[route], "tempo": value})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unknown_field")
        assert answer.json()["error"]["param"] == "tempo"
        # Which ones there are says what it may be called.
        message = answer.json()["error"]["message"]
        assert re.search(r"'tempo'; there are .*\btemperature\b", message)
        assert "logit_bias" not in message  # is refused by name
    assert script.asked == []


@pytest.mark.parametrize("route", OPENAI)
async def test_in_openais_shape_a_profile_is_a_model(client, route):
    body = {**ROUTES[route], "profile": "p"}
    assert (await client.post(route, json=body)).json()["error"]["param"] == "profile"
    for missing in ({}, {"model": None}):
        body = {name: value for name, value in ROUTES[route].items() if name != "model"}
        assert (await client.post(route, json={**body, **missing})).json()["error"]["param"] == "model"


@pytest.mark.parametrize(("logprobs", "seen"), [(0, 0), (20, 20), (None, None)])
async def test_logprobs_of_ours_are_up_to_twenty(client, script, logprobs, seen):
    body = {**ROUTES["/v1/generate"], "logprobs": logprobs}
    assert (await client.post("/v1/generate", json=body)).status_code == 200
    assert script.asked[0].sampling.logprobs == seen


@pytest.mark.parametrize("logprobs", [-1, 21, True, 1.5, "2"])
async def test_more_logprobs_of_ours_are_422(client, logprobs):
    body = {**ROUTES["/v1/generate"], "logprobs": logprobs}
    answer = await client.post("/v1/generate", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "logprobs")
