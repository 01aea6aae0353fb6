"""In what order a GPU's lanes are told to wait for one another, by streams and events that only take note."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from xpeft_server.model.cuda_lanes import CudaLanes, CudaMark

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/model/test_gpu.py has the real ones")


class Device:
    """What was asked of it, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.streams: list[Stream] = [Stream(self, "main")]
        self.events = 0

    def stream(self, device: Any) -> Stream:
        return Stream(self, "fills")

    def event(self, *, enable_timing: bool) -> Event:
        assert enable_timing
        self.events += 1
        return Event(self, f"event {self.events}")

    @contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        self.streams.append(stream)
        yield
        self.streams.pop()


class Stream:
    def __init__(self, device: Device, name: str) -> None:
        self._device = device
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        self._device.log.append((self.name, "waits for all of", other.name))

    def wait_event(self, event: Event) -> None:
        self._device.log.append((self.name, "waits for", event.name))


class Event:
    def __init__(self, device: Device, name: str) -> None:
        self._device = device
        self.name = name

    def record(self, stream: Stream) -> None:
        self._device.log.append((self.name, "is on", stream.name))

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 1500.0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch.cuda, "Stream", made.stream)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", made.within)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    return made


@pytest.fixture
def lanes(device: Device) -> CudaLanes:
    return CudaLanes(torch.device("cuda"))


def test_a_fill_waits_for_its_readers_and_what_comes_next_for_the_fill(device: Device, lanes: CudaLanes) -> None:
    reader = lanes.mark()
    with lanes.filling(after=[reader]):
        lanes.mark()
    assert device.log == [
        ("event 1", "is on", "main"),
        ("fills", "waits for", "event 1"),
        ("event 2", "is on", "fills"),
        ("main", "waits for all of", "fills"),
    ]


def test_a_fill_without_readers_waits_for_nothing(device: Device, lanes: CudaLanes) -> None:
    with lanes.filling(after=[]):
        pass
    assert device.log == [("main", "waits for all of", "fills")]


def test_a_fill_that_knows_no_readers_waits_for_everything(device: Device, lanes: CudaLanes) -> None:
    with lanes.filling(after=None):
        pass
    assert device.log == [("fills", "waits for all of", "main"), ("main", "waits for all of", "fills")]


def test_what_comes_next_waits_for_a_fill_that_failed_half_way(device: Device, lanes: CudaLanes) -> None:
    with pytest.raises(torch.OutOfMemoryError), lanes.filling(after=[]):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert device.log == [("main", "waits for all of", "fills")]


@pytest.mark.usefixtures("device")
def test_times_are_seconds(lanes: CudaLanes) -> None:
    began, ended = lanes.mark(), lanes.mark()
    assert isinstance(ended, CudaMark)
    assert ended.passed
    assert ended.seconds_since(began) == 1.5
