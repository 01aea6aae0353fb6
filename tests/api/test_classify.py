"""POST /v1/classify: what is taken, what is given, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic import ValidationError

from xpeft_server.api.wire import ClassifyBody
from xpeft_server.engine import errors
from xpeft_server.engine.requests import TextInput

URL = "/v1/classify"


async def test_an_answer_has_the_shape_of_the_contract(client, engine):
    answer = await client.post(URL, json={"profile": "support", "input": ["a", "b"]})
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("id").startswith("classify-")
    assert isinstance(body.pop("created"), int)
    line = {"label": "refund", "score": 0.75, "probs": [0.75, 0.25], "num_classes": 2}
    assert body == {
        "object": "list",
        "profile": "support",
        "profile_version": "sha256:" + "cd" * 32,
        "labels": ["refund", "baggage"],
        "data": [{"index": 0, **line}, {"index": 1, **line}],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert engine.seen[0].profile == ("default", "support")


async def test_an_answer_carries_its_version_and_its_times(client):
    headers = (await client.post(URL, json={"profile": "support", "input": "a"})).headers
    assert headers["x-profile-version"] == "sha256:" + "cd" * 32
    assert float(headers["x-queue-time"]) == 0.001
    assert float(headers["x-inference-time"]) == 0.002
    assert 0 < float(headers["x-total-time"]) < 10
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("one", (TextInput("one"),)),
        (["one", "two"], (TextInput("one"), TextInput("two"))),
        ([{"text": "one", "text_pair": "two"}], (TextInput("one", "two"),)),
        ([{"text": "one"}], (TextInput("one"),)),
        ("\U0001f600 \x00 ü", (TextInput("\U0001f600 \x00 ü"),)),
    ],
)
async def test_every_form_of_input_reaches_the_engine(client, engine, given, seen):
    assert (await client.post(URL, json={"profile": "p", "input": given})).status_code == 200
    assert engine.seen[0].inputs == seen
    assert engine.seen[0].truncate is False


async def test_truncate_is_passed_on(client, engine):
    await client.post(URL, json={"profile": "p", "input": "a", "truncate": True})
    assert engine.seen[0].truncate is True


async def test_model_is_another_word_for_profile(client, engine):
    assert (await client.post(URL, json={"model": "p", "input": "a"})).json()["profile"] == "p"
    assert (await client.post(URL, json={"model": "p", "profile": "p", "input": "a"})).status_code == 200


async def test_a_content_type_may_have_parameters(client):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    answer = await client.post(URL, content=b'{"profile":"p","input":"a"}', headers=headers)
    assert answer.status_code == 200


OK = '"profile":"p","input":"a"'
BAD_BODIES = {
    "empty": (b"", 400, "invalid_json", None),
    "blank": (b"  ", 400, "invalid_json", None),
    "half": (b'{"profile":', 400, "invalid_json", None),
    "deep": (b"[" * 2000 + b"]" * 2000, 400, "invalid_json", None),
    "deep inside": (b'{"profile":"p","input":' + b"[" * 1900 + b"]" * 1900 + b"}", 400, "invalid_json", None),
    "NaN": (b'{"profile":"p","input":"a","truncate":NaN}', 400, "invalid_json", None),
    "infinity": (b'{"profile":"p","input":Infinity}', 400, "invalid_json", None),
    "lone surrogate": (rb'{"profile":"p","input":"\ud800"}', 400, "invalid_json", None),
    "not UTF-8": (b'{"profile":"p","input":"\xff"}', 400, "invalid_json", None),
    "UTF-16": ('{"profile":"p","input":"a"}'.encode("utf-16"), 400, "invalid_json", None),
    "trailing": (b'{"profile":"p","input":"a"} x', 400, "invalid_json", None),
    "array": (b"[]", 422, "invalid_body", None),
    "string": (b'"text"', 422, "invalid_body", None),
    "number": (b"1", 422, "invalid_body", None),
    "null": (b"null", 422, "invalid_body", None),
    "no profile": (b'{"input":"a"}', 422, "missing_field", "profile"),
    "no input": (b'{"profile":"p"}', 422, "missing_field", "input"),
    "unknown field": (f'{{{OK},"tempo":1}}'.encode(), 422, "unknown_field", "tempo"),
    "unknown field in a pair": (
        b'{"profile":"p","input":[{"text":"a","pair":"b"}]}',
        422,
        "unknown_field",
        "input[0].pair",
    ),
    "two names": (b'{"profile":"p","model":"q","input":"a"}', 422, "invalid_field", "model"),
    "profile is a number": (b'{"profile":1,"input":"a"}', 422, "invalid_field", "profile"),
    "profile is empty": (b'{"profile":"","input":"a"}', 422, "invalid_name", "profile"),
    "profile is a path": (b'{"profile":"../etc/passwd","input":"a"}', 422, "invalid_name", "profile"),
    "profile ends a line": (b'{"profile":"p\\n","input":"a"}', 422, "invalid_name", "profile"),
    "profile is too long": (b'{"profile":"' + b"p" * 129 + b'","input":"a"}', 422, "invalid_name", "profile"),
    "profile has a colon": (b'{"profile":"a:b","input":"a"}', 422, "invalid_name", "profile"),
    "the bare model": (b'{"profile":"base","input":"a"}', 404, "profile_not_found", "profile"),
    "input is a number": (b'{"profile":"p","input":1}', 422, "invalid_field", "input"),
    "input is null": (b'{"profile":"p","input":null}', 422, "invalid_field", "input"),
    "input is an object": (b'{"profile":"p","input":{"text":"a"}}', 422, "invalid_field", "input"),
    "input is empty": (b'{"profile":"p","input":""}', 422, "invalid_field", "input"),
    "no inputs": (b'{"profile":"p","input":[]}', 422, "invalid_field", "input"),
    "an empty input": (b'{"profile":"p","input":["a",""]}', 422, "invalid_field", "input[1]"),
    "a mixed list": (b'{"profile":"p","input":["a",{"text":"b"}]}', 422, "invalid_field", "input[1]"),
    "a mixed list of pairs": (b'{"profile":"p","input":[{"text":"b"},"a"]}', 422, "invalid_field", "input[1]"),
    "tokens": (b'{"profile":"p","input":[1,2,3]}', 422, "invalid_field", "input[0]"),
    "an empty pair": (b'{"profile":"p","input":[{}]}', 422, "missing_field", "input[0].text"),
    "text is a number": (b'{"profile":"p","input":[{"text":1}]}', 422, "invalid_field", "input[0].text"),
    "text is empty": (b'{"profile":"p","input":[{"text":""}]}', 422, "invalid_field", "input[0].text"),
    "too many": (b'{"profile":"p","input":["a","a","a","a","a"]}', 422, "too_many_inputs", "input"),
    "truncate is a text": (f'{{{OK},"truncate":"yes"}}'.encode(), 422, "invalid_field", "truncate"),
    "truncate is a number": (f'{{{OK},"truncate":1}}'.encode(), 422, "invalid_field", "truncate"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
async def test_a_bad_body_is_refused_in_the_envelope_and_never_reaches_the_engine(client, engine, case):
    content, status, code, param = BAD_BODIES[case]
    answer = await client.post(URL, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert error["message"]
    assert engine.seen == []


async def test_a_hostile_value_does_not_travel_back(client):
    answer = await client.post(URL, json={"profile": "x" * 3000, "input": "a"})
    assert len(answer.content) < 500
    answer = await client.post(URL, json={"profile": "p", "input": "a", "x" * 3000: 1})
    assert len(answer.content) < 500


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
async def test_another_content_type_is_415(client, media_type):
    headers = {} if media_type is None else {"content-type": media_type}
    answer = await client.post(URL, content=b'{"profile":"p","input":"a"}', headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


async def test_an_encoded_body_is_415(client):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert (await client.post(URL, content=b"\x1f\x8b", headers=headers)).status_code == 415


async def test_a_body_over_the_limit_is_413(client, engine):
    answer = await client.post(URL, json={"profile": "p", "input": "a" * 5000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert engine.seen == []


async def test_a_body_without_a_length_is_cut_off_and_so_is_its_connection(client):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 1 << 20
            yield b"a" * (1 << 20)

    answer = await client.post(URL, content=endless(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert sent <= 18 << 20


async def test_a_client_that_asks_first_is_refused_before_it_sends(client):
    async def unread():
        pytest.fail("the body was asked for")
        yield b""

    headers = {"content-type": "application/json", "content-length": "5000", "expect": "100-continue"}
    answer = await client.post(URL, content=unread(), headers=headers)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (errors.InvalidInput("input[0]: out", param="input[0]"), 422, "invalid_input", None),
        (errors.InputTooLong("600 tokens of 512", param="input[0]"), 422, "input_too_long", None),
        (errors.ProfileNotFound("no", param="profile"), 404, "profile_not_found", None),
        (errors.ProfileHasNoHead("no head", param="profile"), 422, "profile_has_no_head", None),
        (errors.WrongBank("other bank"), 409, "wrong_bank", None),
        (errors.DamagedProfile("checksum"), 500, "damaged_profile", None),
        (errors.Overloaded("full", retry_after=2.2), 429, "overloaded", "3"),
        (errors.Unavailable("store down", retry_after=0.1), 503, "unavailable", "1"),
    ],
)
async def test_an_error_of_the_engine_becomes_its_answer(client, engine, failure, status, code, retry_after):
    engine.failure = failure
    answer = await client.post(URL, json={"profile": "p", "input": "a"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["message"]) == (code, failure.param, failure.message)
    assert answer.headers.get("retry-after") == retry_after


async def test_a_bug_is_500_with_the_request_id_and_a_traceback_in_the_log(client, engine, caplog):
    engine.failure = ZeroDivisionError("secret detail")
    answer = await client.post(URL, json={"profile": "p", "input": "a"}, headers={"x-request-id": "r-1"})
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("internal_error", "server_error")
    assert "r-1" in error["message"]
    assert "secret" not in answer.text
    assert "r-1" in caplog.text
    assert "ZeroDivisionError: secret detail" in caplog.text
    engine.failure = None
    assert (await client.post(URL, json={"profile": "p", "input": "a"})).status_code == 200


async def test_answered_requests_are_counted_by_profile(client, metric):
    for name in ("a", "a", "b"):
        await client.post(URL, json={"profile": name, "input": "x"})
    assert metric('xpeft_profile_requests_total{profile="a",tenant="default"}') == 2
    assert metric('xpeft_profile_requests_total{profile="b",tenant="default"}') == 1


async def test_a_full_queue_refuses_before_it_looks_at_what_is_asked(client, engine, metric):
    engine.full = True
    answer = await client.post(URL, content=b"not even JSON", headers={"content-type": "application/json"})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    assert engine.seen == []
    assert metric('xpeft_refusals_total{reason="queue"}') == 1


async def test_refused_requests_are_not_counted_by_profile(client, engine, metrics):
    engine.failure = errors.ProfileNotFound("no")
    await client.post(URL, json={"profile": "made-up", "input": "x"})
    assert b"made-up" not in metrics.render()


async def test_requests_are_counted_by_outcome(client, engine, metric):
    await client.post(URL, json={"profile": "p", "input": "x"})
    await client.post(URL, json={})
    engine.failure = errors.Overloaded("full")
    await client.post(URL, json={"profile": "p", "input": "x"})
    engine.failure = RuntimeError()
    await client.post(URL, json={"profile": "p", "input": "x"})
    for outcome in ("ok", "client_error", "overloaded", "server_error"):
        assert metric(f'xpeft_requests_total{{outcome="{outcome}",route="/v1/classify"}}') == 1
    assert metric('xpeft_request_duration_seconds_count{route="/v1/classify"}') == 4


@pytest.mark.parametrize("nested", [False, True])
def test_of_many_unknown_fields_only_the_first_costs_anything(nested):
    fields = {f"a{number}": 1 for number in range(1000)}
    with pytest.raises(ValidationError) as refused:
        ClassifyBody.model_validate({"profile": "p", "input": [fields]} if nested else fields)
    assert refused.value.error_count() == 1


def test_of_many_bad_texts_only_the_first_costs_anything():
    with pytest.raises(ValidationError) as refused:
        ClassifyBody.model_validate({"profile": "p", "input": [1] * 1000})
    assert refused.value.error_count() == 1


async def test_an_answer_says_when_the_store_could_not_be_asked_for_its_version(client, engine, monkeypatch):
    assert "x-profile-unverified" not in (await client.post(URL, json={"profile": "p", "input": "a"})).headers
    verified = engine.classify

    async def unverified(request):
        return dataclasses.replace(await verified(request), verified=False)

    monkeypatch.setattr(engine, "classify", unverified)
    answer = await client.post(URL, json={"profile": "p", "input": "a"})
    assert answer.status_code == 200
    assert answer.headers["x-profile-unverified"] == "true"


async def test_a_damaged_profile_is_no_bug_and_leaves_no_traceback(client, engine, caplog):
    engine.failure = errors.DamagedProfile("profile 'p' is damaged in the store")
    assert (await client.post(URL, json={"profile": "p", "input": "a"})).status_code == 500
    assert not [record for record in caplog.records if record.exc_info]
