"""What every request leaves behind: labels in the log, a line of the access log, the times of its stages."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest

from xpeft_server.api.app import create_app
from xpeft_server.engine.errors import Unavailable
from xpeft_server.log_lines import JsonLines, request_labels

JSON = {"content-type": "application/json"}


@pytest.fixture
def lines():
    """What is logged, as the server would write it."""
    written = []

    class Lines(logging.Handler):
        def emit(self, record):
            written.append(json.loads(self.format(record)))

    handler = Lines()
    handler.setFormatter(JsonLines())
    root, access = logging.getLogger(), logging.getLogger("xpeft.access")
    root.addHandler(handler)
    access.setLevel(logging.INFO)
    yield written
    root.removeHandler(handler)
    access.setLevel(logging.NOTSET)


@pytest.fixture
async def logging_client(settings, engine, store, tuner, keys, metrics, audit):
    settings = settings.model_copy(update={"access_log": True})
    app = create_app(settings, engine=engine, store=store, tuner=tuner, keys=keys, metrics=metrics, audit=audit)
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


def ask(client, name="desk", request_id="r-1"):
    body = {"profile": name, "input": "a secret text"}
    return client.post("/v1/classify?secret=query", json=body, headers={"x-request-id": request_id})


async def test_whatever_is_logged_while_a_request_is_handled_carries_its_id_and_tenant(client, engine, lines):
    engine.failure = ZeroDivisionError("a bug")
    await ask(client)
    (line,) = lines
    assert (line["request_id"], line["tenant"], line["level"]) == ("r-1", "default", "error")
    assert "ZeroDivisionError: a bug" in line["exception"]
    assert request_labels.get() is None


async def test_requests_side_by_side_log_under_their_own_ids(client, engine, lines):
    engine.hold = asyncio.Event()

    async def classify(request, whole=engine.classify):
        answer = await whole(request)
        logging.getLogger("test").warning(request.profile.name)
        return answer

    engine.classify = classify
    asked = [asyncio.create_task(ask(client, f"p{number}", f"p{number}")) for number in range(4)]
    while len(engine.seen) < 4:
        await asyncio.sleep(0)
    engine.hold.set()
    await asyncio.gather(*asked)
    assert [line["message"] for line in lines] == [line["request_id"] for line in lines]
    assert len(lines) == 4


async def test_without_the_access_log_a_request_that_is_answered_logs_nothing(client, lines):
    await ask(client)
    assert lines == []


async def test_the_access_log_has_a_line_for_a_request(logging_client, engine, lines):
    async def classify(request, whole=engine.classify):
        answer = await whole(request)
        request.journey.profile_version = answer.profile_version
        request.journey.prompt_tokens = answer.prompt_tokens
        return answer

    engine.classify = classify
    await ask(logging_client)
    (line,) = lines
    assert line.pop("timestamp")
    assert 0 < line.pop("seconds") < 10
    assert line == {
        "level": "info",
        "logger": "xpeft.access",
        "message": "POST /v1/classify 200",
        "request_id": "r-1",
        "tenant": "default",
        "method": "POST",
        "route": "/v1/classify",
        "status": 200,
        "outcome": "ok",
        "client": "192.0.2.7:4711",
        "profile": "desk",
        "profile_version": "sha256:" + "cd" * 32,
        "prompt_tokens": 7,
        "completion_tokens": 0,
    }


async def test_the_access_log_has_nothing_that_a_stranger_may_put_there(logging_client, lines):
    await logging_client.get("/secret/path?secret=1", headers={"x-secret": "secret", "authorization": "Bearer secret"})
    await logging_client.post("/v1/classify", content=b'{"secret": 1', headers=JSON)
    assert [line["message"] for line in lines] == ["GET unmatched 404", "POST /v1/classify 400"]
    assert "secret" not in json.dumps(lines)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/profiles/desk", None),
        ("DELETE", "/v1/profiles/desk", None),
        ("PUT", "/v1/profiles/desk", b"nothing"),
        ("POST", "/v1/profiles/desk/tune", b"{}"),
    ],
)
async def test_the_access_log_names_the_profile_of_a_path(logging_client, lines, method, path, body):
    kind = "application/octet-stream" if method == "PUT" else "application/json"
    await logging_client.request(method, path, content=body, headers={"content-type": kind})
    (line,) = lines
    assert line["profile"] == "desk"


async def test_the_access_log_says_that_a_client_went_away(logging_client, engine, lines):
    engine.hold = asyncio.Event()
    asked = asyncio.create_task(ask(logging_client))
    await engine.waiting.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    (line,) = lines
    assert line["outcome"] == "cancelled"
    assert "status" not in line


async def test_an_answer_says_how_long_each_stage_took(client, engine):
    async def classify(request, whole=engine.classify):
        request.journey.note("tokenise", 1.0, 1.00025)
        request.journey.note("queue", 1.5, 1.75)
        request.journey.note("forward", 2.0, 3.5, texts=1)
        return await whole(request)

    engine.classify = classify
    answer = await ask(client)
    assert answer.headers["server-timing"] == "tokenise;dur=0.250, queue;dur=250.000, forward;dur=1500.000"


async def test_an_error_says_it_too_and_who_never_came_to_the_engine_says_nothing(client, engine):
    async def classify(request):
        request.journey.note("store", 1.0, 4.0)
        raise Unavailable("the store is down")

    engine.classify = classify
    assert (await ask(client)).headers["server-timing"] == "store;dur=3000.000"
    assert "server-timing" not in (await client.get("/health")).headers
