"""A closed loop around an engine whose batches a test makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice, repeat

import pytest

from xpeft_benchmarks.engine.closed_loop import ClosedLoop
from xpeft_benchmarks.stretches import RequestsFailed
from xpeft_profiles import ProfileKey
from xpeft_server.engine.device.times import DeviceTimes
from xpeft_server.engine.errors import Overloaded
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.requests import ClassifyRequest, TextInput

BATCH = 4
_sleep = asyncio.sleep


class Batches:
    """Answers four requests at a time, in the order in which they came, in a hundredth of a second."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.device_times = DeviceTimes()
        self.most = 0
        self.refuse_at: int | None = None
        self.computed = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._inside = 0

    async def classify(self, request: ClassifyRequest) -> None:
        if self.computed == self.refuse_at:
            raise Overloaded("no room")
        self._inside += 1
        self.most = max(self.most, self._inside)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        try:
            await answer
        finally:
            self._inside -= 1

    async def work(self) -> None:
        while True:
            there = [each for each in self._waiting if not each.done()]
            batch, self._waiting = there[:BATCH], there[BATCH:]
            await _sleep(0.01)
            if batch:
                self._end(batch)

    def _end(self, batch: list[asyncio.Future[None]]) -> None:
        """Who has gone since it was taken has been computed all the same."""
        batches, busy, host = self.device_times
        self.device_times = DeviceTimes(batches + 1, busy + 0.008, host + 0.002)
        self.computed += len(batch)
        self.metrics.cache_misses["device"].inc(3)
        self.metrics.cache_misses["host"].inc(1)
        for each in batch:
            if not each.done():
                each.set_result(None)


@pytest.fixture
async def batches() -> AsyncIterator[Batches]:
    made = Batches()
    working = asyncio.create_task(made.work())
    yield made
    working.cancel()


def requests(inputs: int = 1) -> Iterator[ClassifyRequest]:
    for key in repeat(ProfileKey("a", "b")):
        yield ClassifyRequest(key, (TextInput("w"),) * inputs)


async def test_a_turn_lasts_as_long_as_it_is_to(batches: Batches) -> None:
    turn = await ClosedLoop(batches, 12).turn(requests(), 0.1, ramp=12)
    assert turn.seconds >= 0.1


async def test_a_turn_is_whole_batches_and_what_the_engine_did_meanwhile(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def five_batches(seconds: float) -> None:
        end = batches.computed + 5 * BATCH
        while batches.computed < end:
            await _sleep(0)

    monkeypatch.setattr(asyncio, "sleep", five_batches)
    turn = await ClosedLoop(batches, 12).turn(requests(), 0.1, ramp=12)
    assert turn.batches >= 5
    assert turn.texts == BATCH * turn.batches
    assert turn.seconds >= 0.01 * turn.batches
    assert turn.busy_seconds == pytest.approx(0.008 * turn.batches)
    assert turn.host_seconds == pytest.approx(0.002 * turn.batches)
    assert (turn.made, turn.read) == (3 * turn.batches, turn.batches)


async def test_as_many_requests_are_in_flight_as_asked_and_none_afterwards(batches: Batches) -> None:
    for _ in range(2):
        await ClosedLoop(batches, 9).turn(requests(), 0.01, ramp=9)
        assert batches.most == 9
        assert batches._inside == 0


async def test_the_ramp_is_no_part_of_a_turn(batches: Batches) -> None:
    turn = await ClosedLoop(batches, 8).turn(requests(), 0.0, ramp=40)
    assert turn.texts == BATCH
    assert batches.computed >= 40 + BATCH


async def test_every_text_of_a_request_counts(batches: Batches) -> None:
    turn = await ClosedLoop(batches, 8).turn(requests(inputs=5), 0.05, ramp=40)
    assert turn.texts == 5 * BATCH * turn.batches


async def test_a_number_of_requests_is_asked_and_no_more(batches: Batches) -> None:
    await ClosedLoop(batches, 6).ask_all(islice(requests(), 22))
    assert batches.computed == 22
    assert batches.most == 6


async def test_a_request_that_is_refused_ends_the_turn(batches: Batches) -> None:
    batches.refuse_at = 2 * BATCH
    with pytest.raises(RequestsFailed, match="the engine refused a request: no room"):
        await ClosedLoop(batches, 8).turn(requests(), 5.0, ramp=8)
