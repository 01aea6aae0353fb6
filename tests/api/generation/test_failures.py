"""What goes wrong with generation: before the answer begins it has a status, later it is the stream's last event."""

from __future__ import annotations

import orjson
import pytest

from xpeft_server.engine import errors
from xpeft_server.engine.requests import Piece, Started

BODIES = {
    "/v1/generate": {"model": "p", "prompt": "a"},
    "/v1/completions": {"model": "p", "prompt": "a"},
    "/v1/chat/completions": {"model": "p", "messages": [{"role": "user", "content": "a"}]},
}
FAILURES = [
    (errors.InvalidInput("out"), 422, "invalid_input", "invalid_request_error", None),
    (errors.InputTooLong("600 tokens of 512"), 422, "input_too_long", "invalid_request_error", None),
    (errors.NoChatTemplate("no template"), 400, "no_chat_template", "invalid_request_error", None),
    (errors.DoesNotGenerate("an encoder"), 400, "model_does_not_generate", "invalid_request_error", None),
    (errors.ProfileNotFound("no"), 404, "profile_not_found", "not_found_error", None),
    (errors.WrongBank("other bank"), 409, "wrong_bank", "conflict_error", None),
    (errors.DamagedProfile("checksum"), 500, "damaged_profile", "server_error", None),
    (errors.Overloaded("full", retry_after=2.2), 429, "overloaded", "overloaded_error", "3"),
    (errors.Unavailable("store down", retry_after=0.1), 503, "unavailable", "unavailable_error", "1"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("failure", "status", "code", "kind", "retry_after"), FAILURES, ids=[type(row[0]).__name__ for row in FAILURES]
)
async def test_what_is_wrong_before_the_first_token_is_a_status(
    client, script, path, stream, failure, status, code, kind, retry_after
):
    script.fail(failure)
    answer = await client.post(path, json={**BODIES[path], "stream": stream})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    error = {"message": failure.message, "type": kind, "param": None, "code": code}
    assert answer.json() == {"error": error}
    assert answer.headers.get("retry-after") == retry_after


@pytest.mark.parametrize(
    ("path", "prompts", "names"),
    [
        ("/v1/generate", {}, {"profile": "profile", "prompt": "prompt", "max_new_tokens": "max_new_tokens"}),
        ("/v1/completions", {}, {"profile": "model", "prompt": "prompt", "max_new_tokens": "max_tokens"}),
        ("/v1/completions", {"prompt": [7]}, {"prompt": "prompt"}),
        ("/v1/completions", {"prompt": ["a"]}, {"prompt": "prompt[0]", "stop": "stop"}),
        ("/v1/chat/completions", {}, {"profile": "model", "prompt": "messages", "seed": "seed"}),
    ],
)
async def test_an_error_calls_a_field_as_the_route_does(client, script, path, prompts, names):
    for field, name in names.items():
        script.fail(errors.InvalidInput("wrong", param=field))
        assert (await client.post(path, json={**BODIES[path], **prompts})).json()["error"]["param"] == name


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_breaks_off_ends_with_the_error_and_nothing_else(client, script, metric, path):
    script.fail(errors.Unavailable("the device is lost"), after=2)
    answer = await client.post(path, json={**BODIES[path], "stream": True})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    *told, last, rest = answer.content.split(b"\n\n")
    assert b"Hel" in told[-1]
    assert orjson.loads(last.removeprefix(b"data: ")) == {
        "error": {
            "message": "the device is lost",
            "type": "unavailable_error",
            "param": None,
            "code": "unavailable",
        }
    }
    assert rest == b""
    assert metric(f'xpeft_requests_total{{outcome="server_error",route="{path}"}}') == 1
    assert metric(f'xpeft_requests_total{{outcome="ok",route="{path}"}}') == 0


@pytest.mark.parametrize("path", BODIES)
async def test_a_bug_in_a_stream_tells_the_request_id_and_is_in_the_log(client, script, caplog, path):
    script.fail(ZeroDivisionError("secret detail"), after=2)
    answer = await client.post(path, json={**BODIES[path], "stream": True}, headers={"x-request-id": "r-1"})
    error = orjson.loads(answer.content.split(b"data: ")[-1])["error"]
    assert (error["code"], error["type"]) == ("internal_error", "server_error")
    assert "r-1" in error["message"]
    assert "secret" not in answer.text
    assert "ZeroDivisionError: secret detail" in caplog.text


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_falls_silent_is_a_failure_and_no_answer(client, script, metric, path, stream):
    script.lines = [Started("v", 0.0), Piece("Hel")]
    answer = await client.post(path, json={**BODIES[path], "stream": stream})
    assert answer.status_code == (200 if stream else 500)
    error = orjson.loads(answer.content.removesuffix(b"\n\n").split(b"data: ")[-1])["error"]
    assert error["code"] == "internal_error"
    assert b"[DONE]" not in answer.content
    assert metric(f'xpeft_requests_total{{outcome="server_error",route="{path}"}}') == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_one_prompt_that_fails_withdraws_the_others_and_is_the_answer(client, script, stream):
    script.hold(after=2)
    script.of["b"] = [errors.InputTooLong("too long", param="prompt")]
    answer = await client.post("/v1/completions", json={"model": "p", "prompt": ["a", "b", "c"], "stream": stream})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "prompt[1]")
    assert sorted(script.withdrawn) == ["a", "c"]


async def test_one_prompt_that_fails_on_the_way_ends_the_stream_of_all(client, script):
    script.hold(after=2)
    script.of["b"] = [Started("v", 0.0), Piece("of b"), errors.Unavailable("lost")]
    answer = await client.post("/v1/completions", json={"model": "p", "prompt": ["a", "b"], "stream": True})
    events = answer.content.split(b"\n\n")
    assert any(b"of b" in event for event in events)
    assert orjson.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "unavailable"
    assert script.withdrawn == ["a"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_of_many_prompts_that_is_refused_is_one_refusal(client, script, metric, stream):
    script.fail(errors.LimitReached("concurrency", "one at a time"))
    body = {"model": "p", "prompt": ["a", "b", "c"], "stream": stream}
    assert (await client.post("/v1/completions", json=body)).status_code == 429
    assert len(script.asked) == 3
    assert metric('xpeft_refusals_total{reason="concurrency"}') == 1


@pytest.mark.parametrize("path", BODIES)
async def test_outcomes_are_counted(client, script, metric, path):
    lines = list(script.lines)
    await client.post(path, json=BODIES[path])
    await client.post(path, json={**BODIES[path], "stream": True})
    await client.post(path, json={})
    script.fail(errors.Overloaded("full"))
    await client.post(path, json={**BODIES[path], "stream": True})
    script.lines = lines
    await client.post(path, json=BODIES[path])
    for outcome, count in {"ok": 3, "client_error": 1, "overloaded": 1, "server_error": 0, "cancelled": 0}.items():
        assert metric(f'xpeft_requests_total{{outcome="{outcome}",route="{path}"}}') == count
