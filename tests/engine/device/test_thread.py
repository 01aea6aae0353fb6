"""The device thread over a device that computes by itself: here a CPU whose results come when a test lets them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xpeft_profiles import Profile, ProfileKey
from xpeft_server.engine.device import thread as device_thread
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.engine_limits import EngineLimits
from xpeft_server.engine.errors import InternalError, Unavailable
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.requests import ClassifyAnswer, ClassifyRequest, TextInput
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.lanes import HostLanes, Mark
from xpeft_server.model.launched import Launched

MakeProfile = Callable[..., Profile]
WAIT = 20.0


class LateMark:
    """Passes when it is let."""

    def __init__(self, real: Mark) -> None:
        self.real = real
        self.gate = threading.Event()
        self.failure: Exception | None = None

    @property
    def passed(self) -> bool:
        return self.gate.is_set()

    def wait(self) -> None:
        assert self.gate.wait(WAIT), "nobody let the batch end"
        if self.failure is not None:
            raise self.failure

    def seconds_since(self, earlier: Mark) -> float:
        return self.real.seconds_since(earlier)


class LateLanes(HostLanes):
    """Notes what each fill was told to wait for."""

    asynchronous = True

    def __init__(self) -> None:
        self.fills: list[list[Mark] | None] = []

    @contextmanager
    def filling(self, *, after: Sequence[Mark] | None) -> Iterator[None]:
        self.fills.append(None if after is None else list(after))
        yield


class LateClassifier(Classifier):
    """Its batches end when a test lets them, or at once while ``at_once``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lanes = LateLanes()
        self.buffers.lanes = self.lanes
        self.launches: list[LateMark] = []
        self.changed = threading.Condition()
        self.at_once = False

    def launch(self, inputs: Sequence[ClassifierInput]) -> Launched:
        made = super().launch(inputs)
        late = LateMark(made.ended)
        # Whoever noted the batch's end as the moment until which its slots are read has to see the late one.
        (read,) = [each for each in self.buffers._readers._reads if each.until is made.ended]
        self.buffers._readers._reads[-1] = read._replace(until=late)
        made.ended = late
        with self.changed:
            self.launches.append(late)
            self.changed.notify_all()
        if self.at_once:
            late.gate.set()
        return made

    async def launched(self, count: int) -> None:
        def wait() -> bool:
            with self.changed:
                return self.changed.wait_for(lambda: len(self.launches) >= count, WAIT)

        assert await asyncio.to_thread(wait), f"{len(self.launches)} batches were launched, expected {count}"


class WatchedRoom:
    """The room on the device; ``full`` once its thread has waited for some."""

    def __init__(self, room: threading.Semaphore) -> None:
        self._room = room
        self.full = threading.Event()
        self.release = room.release

    def acquire(self) -> None:
        if not self._room.acquire(blocking=False):
            self.full.set()
            self._room.acquire()


class Late:
    """An engine over such a device, and profiles ``p0``, ``p1``, … of tenant ``t``."""

    def __init__(self, classifier: LateClassifier, store: Any, died: asyncio.Event) -> None:
        limits = EngineLimits(
            max_batch_tokens=16,
            queue_limit=1000,
            queue_token_limit=100_000,
            queue_seconds=60.0,
            max_inputs=256,
            max_sequences=1,
            host_cache_bytes=1 << 24,
        )
        self.classifier = classifier
        self.engine = Engine(classifier, store, limits=limits, metrics=Metrics(), on_death=died.set)
        self.died = died
        self.room = WatchedRoom(self.engine._device._room)
        self.engine._device._room = self.room

    def ask(self, number: int, words: int = 10) -> asyncio.Task[ClassifyAnswer]:
        request = ClassifyRequest(ProfileKey("t", f"p{number}"), (TextInput(" ".join(["w1"] * words)),))
        return asyncio.create_task(self.engine.classify(request))


@pytest.fixture
async def start_late(plm: Any, store: Any, profile: MakeProfile) -> AsyncIterator[Callable[..., Any]]:
    started: list[Late] = []

    async def start(*, slots: int = 8, profiles: int = 4) -> Late:
        bank = open_bank("random:N=12,R=8,seed=1,std=0.3", plm.facts)
        late = Late(LateClassifier(plm, bank, slots=slots, head_rows=64), store, asyncio.Event())
        started.append(late)
        await late.engine.start()
        for number in range(profiles):
            await store.put(ProfileKey("t", f"p{number}"), profile(late.engine.geometry, number))
        return late

    yield start
    for late in started:
        late.classifier.at_once = True
        for mark in late.classifier.launches:
            mark.gate.set()
        await late.engine.close()


async def test_the_device_has_two_batches_and_no_third(start_late: Any) -> None:
    late = await start_late()
    asked = [late.ask(0)]
    await late.classifier.launched(1)
    asked.append(late.ask(1))
    await late.classifier.launched(2)
    asked.append(late.ask(2))
    while not late.engine._count_waiting():
        await asyncio.sleep(0)
    assert await asyncio.to_thread(late.room.full.wait, WAIT)
    assert len(late.classifier.launches) == 2
    late.classifier.launches[0].gate.set()
    await late.classifier.launched(3)
    assert (await asked[0]).data
    assert not asked[1].done()
    for mark in late.classifier.launches[1:]:
        mark.gate.set()
    assert all(answer.data for answer in await asyncio.gather(*asked))
    assert late.engine.device_times.batches == 3


async def test_time_in_which_two_batches_are_on_the_device_counts_once(
    start_late: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = await start_late()
    now = begun = time.monotonic()
    monkeypatch.setattr(device_thread, "time", SimpleNamespace(monotonic=lambda: now))
    first = late.ask(0)
    await late.classifier.launched(1)
    now = begun + 1
    second = late.ask(1)
    await late.classifier.launched(2)
    now = begun + 5
    late.classifier.launches[0].gate.set()
    assert (await first).inference_time == pytest.approx(5)
    now = begun + 7
    late.classifier.launches[1].gate.set()
    assert (await second).inference_time == pytest.approx(2)


async def test_what_waits_for_room_is_one_batch(start_late: Any) -> None:
    late = await start_late()
    first = [late.ask(0)]
    await late.classifier.launched(1)
    first.append(late.ask(1))
    await late.classifier.launched(2)
    rest = [late.ask(number, words=1) for number in range(4)]
    while late.engine._count_waiting() < 4:
        await asyncio.sleep(0)
    late.classifier.at_once = True
    for mark in list(late.classifier.launches):
        mark.gate.set()
    await asyncio.gather(*first, *rest)
    assert len(late.classifier.launches) == 3


async def test_answers_are_those_of_each_request_alone(start_late: Any) -> None:
    late = await start_late(slots=2)
    late.classifier.at_once = True
    alone = {n: (await late.ask(n % 4, 1 + n % 9)).data for n in range(36)}
    late.classifier.at_once = False
    asked = {n: late.ask(n % 4, 1 + n % 9) for n in range(36)}
    opened = 0
    while not all(task.done() for task in asked.values()):
        if opened < len(late.classifier.launches):
            late.classifier.launches[opened].gate.set()
            opened += 1
        await asyncio.sleep(0.001)
    assert {n: (await task).data for n, task in asked.items()} == alone


async def test_a_fill_waits_for_the_batch_that_reads_its_slot_and_for_no_other(start_late: Any) -> None:
    late = await start_late(slots=1)
    asked = [late.ask(0)]
    await late.classifier.launched(1)
    asked.append(late.ask(1))
    await late.classifier.launched(2)
    assert late.classifier.lanes.fills == [[], [late.classifier.launches[0]]]
    for mark in late.classifier.launches:
        mark.gate.set()
    await asyncio.gather(*asked)
    asked = [late.ask(2)]
    await late.classifier.launched(3)
    assert late.classifier.lanes.fills[2] == []


async def test_a_fill_of_a_free_slot_waits_for_nothing(start_late: Any) -> None:
    late = await start_late()
    asked = [late.ask(0)]
    await late.classifier.launched(1)
    asked.append(late.ask(1))
    await late.classifier.launched(2)
    assert late.classifier.lanes.fills == [[], []]


async def test_a_fill_that_reuses_a_head_s_rows_waits_for_their_reader(start_late: Any, plm: Any) -> None:
    late = await start_late()
    # Room for one head of three labels, though for many adapters.
    table = late.engine._device._launcher._slots
    del table._free_rows[3:]
    asked = [late.ask(0)]
    await late.classifier.launched(1)
    asked.append(late.ask(1))
    await late.classifier.launched(2)
    assert late.classifier.lanes.fills == [[], [late.classifier.launches[0]]]


async def test_an_error_of_the_device_fails_everybody_at_once(start_late: Any) -> None:
    late = await start_late()
    asked = [late.ask(0)]
    await late.classifier.launched(1)
    asked.append(late.ask(1))
    await late.classifier.launched(2)
    asked += [late.ask(number) for number in (2, 3)]
    while late.engine._count_waiting() < 2:
        await asyncio.sleep(0)
    late.classifier.launches[0].failure = RuntimeError("CUDA error: an illegal memory access was encountered")
    late.classifier.launches[0].gate.set()
    async with asyncio.timeout(WAIT):
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await late.died.wait()
    assert all(isinstance(answer, InternalError) for answer in answers)
    assert "illegal memory access" in str(answers[0])
    assert late.engine.status().checks["engine"] == "failed"
    with pytest.raises(Unavailable):
        await late.ask(0)


@pytest.mark.parametrize("survives", [True, False])
async def test_a_batch_is_halved_only_where_the_device_survived(
    start_late: Any, monkeypatch: pytest.MonkeyPatch, survives: bool, caplog: pytest.LogCaptureFixture
) -> None:
    late = await start_late()
    late.classifier.at_once = True
    await late.ask(0)
    tried: list[int] = []

    def launch(inputs: Any) -> Any:
        tried.append(len(inputs))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def synchronize(*_: Any) -> None:
        if not survives:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(late.classifier, "launch", launch)
    texts = (TextInput("w1"), TextInput("w2"))
    async with asyncio.timeout(WAIT):
        with pytest.raises(InternalError, match="illegal memory access"):
            await late.engine.classify(ClassifyRequest(ProfileKey("t", "p0"), texts))
    assert tried == ([2, 1, 1] if survives else [2])
    if not survives:
        await late.died.wait()
    assert ("the device thread ended" in caplog.text) is not survives
