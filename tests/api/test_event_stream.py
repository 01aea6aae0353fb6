"""Server-sent events: how they begin, what fills a silence, and how they end."""

from __future__ import annotations

import asyncio

import pytest

from xpeft_server.api import event_stream
from xpeft_server.api.context import RequestContext
from xpeft_server.api.errors import AnswerBroken, ApiError, ClientGone
from xpeft_server.api.event_stream import DONE, Document, EventStream, Opening


class Client:
    """Reads the messages of an answer, and can go away."""

    def __init__(self):
        self.messages = asyncio.Queue()
        self.left = asyncio.Event()

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.messages.put(message)

    def read(self, events, **options):
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
        RequestContext(scope)
        return asyncio.create_task(EventStream(events, **options)(scope, self.receive, self.send))

    def heard(self):
        return [self.messages.get_nowait() for _ in range(self.messages.qsize())]


async def told(*events):
    for event in events:
        if isinstance(event, Exception):
            raise event
        yield event


def bodies(messages):
    return [message["body"] for message in messages if message["type"] == "http.response.body"]


async def test_documents_are_events_and_the_last_is_followed_by_done():
    client = Client()
    events = told(Opening(()), Document({"a": 1}), Document({"b": "ü\n"}, is_last=True))
    await client.read(events, headers=[(b"x-a", b"1")])
    start, *rest = client.heard()
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert (b"content-type", b"text/event-stream") in start["headers"]
    assert (b"x-a", b"1") in start["headers"]
    assert bodies(rest) == [b'data: {"a":1}\n\n', 'data: {"b":"ü\\n"}\n\n'.encode() + DONE, b""]
    assert [message.get("more_body", False) for message in rest] == [True, True, False]


async def test_an_opening_begins_the_answer_before_there_is_a_document():
    client, gate = Client(), asyncio.Event()

    async def events():
        yield Opening([(b"x-b", b"2")])
        await gate.wait()
        yield Document({}, is_last=True)

    reading = client.read(events())
    start = await client.messages.get()
    assert (b"x-b", b"2") in start["headers"]
    assert client.messages.empty()
    gate.set()
    await reading
    assert bodies(client.heard()) == [b"data: {}\n\n" + DONE, b""]


async def test_documents_wait_for_the_opening():
    client, gate, told_one = Client(), asyncio.Event(), asyncio.Event()

    async def events():
        yield Document(1)
        told_one.set()
        await gate.wait()
        yield Opening([(b"x-b", b"2")])
        yield Document(2, is_last=True)

    reading = client.read(events())
    await told_one.wait()
    assert client.messages.empty()
    gate.set()
    await reading
    start, *rest = client.heard()
    assert (b"x-b", b"2") in start["headers"]
    assert bodies(rest) == [b"data: 1\n\n", b"data: 2\n\n" + DONE, b""]


@pytest.mark.parametrize("end", [Document(3, is_last=True), ApiError(503, "lost", "it is lost")])
async def test_after_a_long_silence_the_answer_begins_without_its_opening(monkeypatch, end):
    monkeypatch.setattr(event_stream, "_SILENT_SECONDS", 0.01)
    client, gate = Client(), asyncio.Event()

    async def events():
        yield Document(1)
        await gate.wait()
        if isinstance(end, ApiError):
            raise end
        yield Opening([(b"x-b", b"2")])
        yield Document(2)
        yield end

    reading = client.read(events(), headers=[(b"x-a", b"1")])
    async with asyncio.timeout(10):
        start, first = [await client.messages.get() for _ in range(2)]
    assert start["status"] == 200
    assert {(b"x-a", b"1"), (b"x-b", b"2")} & set(start["headers"]) == {(b"x-a", b"1")}
    assert first["body"] == b"data: 1\n\n"
    gate.set()
    await asyncio.gather(reading, return_exceptions=True)
    later = [body for body in bodies(client.heard()) if not body.startswith(b":")]
    if isinstance(end, ApiError):
        assert isinstance(reading.exception(), AnswerBroken)
        assert len(later) == 1
        assert b"it is lost" in later[0]
    else:
        assert later == [b"data: 2\n\n", b"data: 3\n\n" + DONE, b""]


@pytest.mark.parametrize("before", [[], [Document({"a": 1})]])
async def test_what_is_raised_before_the_opening_is_still_to_be_answered(before):
    client = Client()
    with pytest.raises(ApiError):
        await client.read(told(*before, ApiError(404, "gone", "gone")))
    assert client.heard() == []


@pytest.mark.parametrize("before", [[Opening(())], [Opening(()), Document({"a": 1})]])
async def test_what_is_raised_later_is_told_as_the_last_event(before):
    client = Client()
    with pytest.raises(AnswerBroken):
        await client.read(told(*before, ApiError(503, "lost", "it is lost")))
    *_, last = messages = client.heard()
    envelope = b'{"error":{"message":"it is lost","type":"unavailable_error","param":null,"code":"lost"}}'
    assert last["body"] == b"data: " + envelope + b"\n\n"
    assert not last.get("more_body", False)
    assert not any(DONE in body for body in bodies(messages))


async def test_a_value_that_is_no_json_breaks_the_answer_and_is_in_the_log(caplog):
    client = Client()
    with pytest.raises(AnswerBroken):
        await client.read(told(Opening(()), Document(object())))
    assert b"internal_error" in client.heard()[-1]["body"]
    assert "not JSON serializable" in caplog.text


async def test_a_silence_is_filled_until_the_answer_ends(monkeypatch):
    monkeypatch.setattr(event_stream, "_SILENT_SECONDS", 0.001)
    client, gate = Client(), asyncio.Event()

    async def events():
        yield Opening(())
        await gate.wait()
        yield Document({}, is_last=True)

    reading = client.read(events())
    await client.messages.get()
    assert [(await client.messages.get())["body"] for _ in range(2)] == [b": still there\n\n"] * 2
    gate.set()
    await reading
    *_, last, end = bodies(client.heard())
    assert (last, end) == (b"data: {}\n\n" + DONE, b"")


async def test_who_speaks_often_needs_no_filling(monkeypatch):
    monkeypatch.setattr(event_stream, "_SILENT_SECONDS", 3600.0)
    client = Client()
    await client.read(told(Opening(()), *map(Document, range(100)), Document({}, is_last=True)))
    assert not any(body.startswith(b":") for body in bodies(client.heard()))


async def test_a_client_that_leaves_closes_the_events():
    client, closed = Client(), []

    async def events():
        try:
            yield Opening(())
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    reading = client.read(events())
    await client.messages.get()
    client.left.set()
    with pytest.raises(ClientGone):
        await reading
    assert closed == [True]
    assert client.messages.empty()


@pytest.mark.parametrize("end", [Document({}, is_last=True), ApiError(503, "lost", "it is lost")])
async def test_nothing_goes_on_when_the_answer_has_ended(end):
    await asyncio.gather(Client().read(told(Opening(()), end)), return_exceptions=True)
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
