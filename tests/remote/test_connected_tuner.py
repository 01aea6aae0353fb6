"""Whoever tunes, over a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from xpeft_profiles import CursorInvalid, JobKey, JobRecord, Match, ProfileKey, StoreUnavailable, TooManyJobs
from xpeft_server.engine.errors import Unavailable
from xpeft_server.jobs.errors import InvalidTuning, JobFinished, JobNotFound, TuningOff
from xpeft_server.jobs.requests import TuningExample, TuningRequest
from xpeft_server.remote.connected_tuner import ConnectedTuner, tuner_methods

Until = Callable[[Callable[[], object]], Awaitable[None]]

KEY = JobKey("acme", "job_1")
QUEUED = JobRecord(tenant="acme", id="job_1", profile="desk", owner="me", status="queued", created=1.0)
RUNNING = replace(QUEUED, status="running", started=2.0, progress={"epoch": 1, "of": 2})
SUCCEEDED = replace(RUNNING, status="succeeded", finished=3.0, result={"profile_version": "sha256:1", "rows": {"a": 1}})
CANCELLED = replace(QUEUED, status="cancelled", finished=3.0)
REQUEST = TuningRequest(
    ProfileKey("acme", "desk"),
    (TuningExample("My bag is lost", "baggage"), TuningExample("Money back", 4.5, "please", "dev")),
    ("baggage", "refund"),
    {"epochs": 3, "lr": 0.1},
    Match(if_none_match=("*",)),
)


class FakeTuner:
    """Has one job; ``failure`` is raised instead of any answer."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.asked: list[Any] = []
        self.changes: asyncio.Queue[JobRecord] = asyncio.Queue()
        self.unfollowed = 0

    async def submit(self, request: TuningRequest) -> JobRecord:
        self._ask(request)
        return QUEUED

    async def get(self, key: JobKey) -> JobRecord:
        self._ask(key)
        return SUCCEEDED

    async def follow(self, key: JobKey) -> AsyncGenerator[JobRecord, None]:
        self._ask(key)
        try:
            while True:
                record = await self.changes.get()
                yield record
                if record.finished is not None:
                    return
        finally:
            self.unfollowed += 1

    async def cancel(self, key: JobKey) -> JobRecord:
        self._ask(key)
        return CANCELLED

    async def list(self, tenant: str, *, limit: int, cursor: str | None) -> tuple[list[JobRecord], str | None]:
        self._ask((tenant, limit, cursor))
        return ([QUEUED, RUNNING], "more") if cursor is None else ([SUCCEEDED], None)

    def _ask(self, what: object) -> None:
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def tuner(ends: Any) -> FakeTuner:
    """The one at the other end."""
    tuner = FakeTuner()
    ends.methods.update(tuner_methods(tuner))
    return tuner


@pytest.fixture
def connected(ends: Any, tuner: FakeTuner) -> ConnectedTuner:
    return ConnectedTuner(ends.here)


async def followed(connected: ConnectedTuner) -> list[JobRecord]:
    async with asyncio.timeout(10), aclosing(connected.follow(KEY)) as records:
        return [record async for record in records]


CALLS: dict[str, Callable[[ConnectedTuner], Awaitable[object]]] = {
    "submit": lambda connected: connected.submit(REQUEST),
    "get": lambda connected: connected.get(KEY),
    "follow": followed,
    "cancel": lambda connected: connected.cancel(KEY),
    "list": lambda connected: connected.list("acme", limit=2, cursor=None),
}


async def test_a_request_arrives_as_it_is_and_its_job_comes_back(connected: ConnectedTuner, tuner: FakeTuner) -> None:
    assert await connected.submit(REQUEST) == QUEUED
    (asked,) = tuner.asked
    # The repr has the types' names: a named tuple equals any tuple.
    assert (asked, repr(asked)) == (REQUEST, repr(REQUEST))


async def test_a_job_can_be_looked_at_and_cancelled(connected: ConnectedTuner, tuner: FakeTuner) -> None:
    assert await connected.get(KEY) == SUCCEEDED
    assert await connected.cancel(KEY) == CANCELLED
    assert (tuner.asked, type(tuner.asked[0])) == ([KEY, KEY], JobKey)


async def test_a_job_is_followed_to_its_end_as_it_changes(connected: ConnectedTuner, tuner: FakeTuner) -> None:
    async with asyncio.timeout(10), aclosing(connected.follow(KEY)) as records:
        for change in (QUEUED, RUNNING, SUCCEEDED):
            tuner.changes.put_nowait(change)
            assert await anext(records) == change
        with pytest.raises(StopAsyncIteration):
            await anext(records)
    assert (tuner.asked, tuner.unfollowed) == ([KEY], 1)


async def test_a_job_that_is_followed_no_longer_is_not_followed_there_either(
    ends: Any, connected: ConnectedTuner, tuner: FakeTuner, until: Until
) -> None:
    tuner.changes.put_nowait(QUEUED)
    async with aclosing(connected.follow(KEY)) as records:
        assert await anext(records) == QUEUED
        assert not tuner.unfollowed
    # Withdrawn when it is closed, not when it is collected.
    assert not ends.here._streams
    await until(lambda: tuner.unfollowed)


async def test_jobs_are_listed_page_by_page(connected: ConnectedTuner, tuner: FakeTuner) -> None:
    assert await connected.list("acme", limit=2, cursor=None) == ([QUEUED, RUNNING], "more")
    assert await connected.list("acme", limit=2, cursor="more") == ([SUCCEEDED], None)
    assert tuner.asked == [("acme", 2, None), ("acme", 2, "more")]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("submit", TooManyJobs(4)),
        ("submit", TuningOff("this server tunes no profiles")),
        ("submit", InvalidTuning("there are no examples", param="examples")),
        ("submit", Unavailable("the server is stopping", retry_after=2.0)),
        ("get", JobNotFound("there is no job 'job_1'", param="id")),
        ("follow", JobNotFound("there is no job 'job_1'", param="id")),
        ("cancel", JobNotFound("there is no job 'job_1'", param="id")),
        ("cancel", JobFinished("job job_1 is over: succeeded")),
        ("list", CursorInvalid("the cursor is not one of this server's")),
        *((call, StoreUnavailable("the store is down")) for call in CALLS),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_a_refusal_comes_back_as_itself(
    connected: ConnectedTuner, tuner: FakeTuner, call: str, error: Exception
) -> None:
    tuner.failure = error
    with pytest.raises(type(error)) as refused:
        await asyncio.wait_for(CALLS[call](connected), 10)
    assert refused.type is type(error)
    assert (str(refused.value), vars(refused.value)) == (str(error), vars(error))
    assert len(tuner.asked) == 1


@pytest.mark.parametrize("call", CALLS)
async def test_without_the_other_end_nothing_is_available(
    ends: Any, connected: ConnectedTuner, tuner: FakeTuner, until: Until, call: str
) -> None:
    ends.cut()
    await until(lambda: "here" in ends.lost)
    with pytest.raises(Unavailable, match="went away"):
        await asyncio.wait_for(CALLS[call](connected), 10)
    assert not tuner.asked
