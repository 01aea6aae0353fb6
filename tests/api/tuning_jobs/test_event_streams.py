"""A job that is followed while it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time

import orjson
import pytest

from xpeft_server.api import event_stream
from xpeft_server.api.event_stream import DONE

EVENTS = {"accept": "text/event-stream"}


class Stream:
    """A client of the application that reads an answer while it comes, and can go away."""

    def __init__(self, app, path, headers=EVENTS):
        self.left = asyncio.Event()
        self.parts = asyncio.Queue()
        self.start = None
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self.task = asyncio.create_task(app(scope, self._receive(), self._send))

    def _receive(self):
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive():
            with contextlib.suppress(StopIteration):
                return next(messages)
            await self.left.wait()
            return {"type": "http.disconnect"}

        return receive

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.parts.put_nowait(message["body"])

    async def event(self):
        """The next event's document, or DONE after the last."""
        async with asyncio.timeout(10):
            part = await self.parts.get()
        event, done, _ = part.partition(DONE)
        if done:
            self.parts.put_nowait(DONE)
        return DONE if not event else orjson.loads(event.removeprefix(b"data: "))


@pytest.fixture
async def follow(app):
    streams = []

    def start(job, **headers):
        streams.append(Stream(app, f"/v1/jobs/{job['id']}", {**EVENTS, **headers}))
        return streams[-1]

    yield start
    for stream in streams:
        stream.left.set()
        async with asyncio.timeout(10):
            await stream.task


async def test_a_stream_has_the_job_at_once_its_changes_and_its_end(client, worker, profile_file, follow, tune, job_of):
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    assert (await stream.event())["status"] == "running"
    assert (stream.start["status"], dict(stream.start["headers"])[b"content-type"]) == (200, b"text/event-stream")
    worker.progress({"epoch": 1, "epochs": 2, "step": 1, "steps": 1, "loss": 1.0})
    assert (await stream.event())["progress"]["loss"] == 1.0
    worker.ends(profile_file(1))
    last = await stream.event()
    assert last == await job_of(client, job)
    assert last["status"] == "succeeded"
    assert await stream.event() == DONE
    await stream.task


async def test_changes_that_come_fast_are_told_at_a_bounded_rate(client, worker, profile_file, follow, tune):
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    await stream.event()
    began = time.monotonic()
    for step in range(1000):
        worker.progress({"epoch": 1, "epochs": 2, "step": step, "steps": 1000, "loss": 1.0})
        await asyncio.sleep(0)
    worker.ends(profile_file(1))
    events = [await stream.event()]
    while events[-1] != DONE:
        events.append(await stream.event())
    assert len(events) - 1 <= 1 + (time.monotonic() - began) / 0.2
    assert events[-2]["status"] == "succeeded"


@pytest.mark.parametrize("status", ["succeeded", "cancelled"])
async def test_a_stream_of_a_job_that_is_over_is_its_end(client, worker, profile_file, status, tune, becomes):
    job = await tune(client)
    await worker.begins()
    if status == "cancelled":
        await client.post(f"/v1/jobs/{job['id']}/cancel")
    else:
        worker.ends(profile_file(1))
    done = await becomes(client, job, status)
    answer = await client.get(f"/v1/jobs/{job['id']}", headers=EVENTS)
    assert answer.content == b"data: " + orjson.dumps(done) + b"\n\n" + DONE


async def test_a_client_that_goes_away_ends_only_its_stream(client, worker, profile_file, follow, metric, tune):
    job = await tune(client)
    await worker.begins()
    leaving, staying = follow(job), follow(job)
    await leaving.event()
    await staying.event()
    leaving.left.set()
    async with asyncio.timeout(10):
        await leaving.task
    assert metric('xpeft_requests_total{outcome="cancelled",route="/v1/jobs/{id}"}') == 1
    worker.ends(profile_file(1))
    assert (await staying.event())["status"] == "succeeded"
    assert worker.killed == []


async def test_a_long_silence_is_filled_with_comments(client, worker, profile_file, follow, monkeypatch, tune):
    monkeypatch.setattr(event_stream, "_SILENT_SECONDS", 0.01)
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    await stream.event()
    async with asyncio.timeout(10):
        assert [await stream.parts.get() for _ in range(2)] == [b": still there\n\n"] * 2


async def test_a_follower_sees_that_the_job_is_cancelled(client, worker, follow, tune):
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    await stream.event()
    await client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (await stream.event())["status"] == "cancelled"
    assert await stream.event() == DONE


async def test_a_follower_sees_that_the_server_stops(client, worker, follow, tuner, submit, tune):
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    await stream.event()
    await tuner.close()
    last = await stream.event()
    assert (last["status"], last["error"]["code"]) == ("failed", "interrupted")
    assert await stream.event() == DONE
    refused = await submit(client)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        ("text/event-stream", True),
        ("text/event-stream, application/json;q=0.5", True),
        ("application/json, text/event-stream;q=0.5", False),
        ("*/*", False),
        ("application/json", False),
    ],
)
async def test_the_accept_header_decides_between_a_document_and_a_stream(client, worker, accept, streams, tune):
    job = await tune(client)
    await client.post(f"/v1/jobs/{job['id']}/cancel")
    answer = await client.get(f"/v1/jobs/{job['id']}", headers={"accept": accept})
    assert answer.headers["content-type"] == ("text/event-stream" if streams else "application/json")
    assert answer.headers["vary"] == "accept"
    head = await client.head(f"/v1/jobs/{job['id']}", headers={"accept": accept})
    assert (head.status_code, head.content) == (200, b"")
