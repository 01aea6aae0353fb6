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
        self.pools = 0
        self.open_pools: list[Pool] = []
        self.captured: list[Pool] = []

    def stream(self, device: Any) -> Stream:
        return Stream(self, "fills")

    def event(self, *, enable_timing: bool) -> Event:
        assert enable_timing
        self.events += 1
        return Event(self, f"event {self.events}")

    @contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        before = list(self.streams)
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams = before

    def pool(self) -> Pool:
        self.pools += 1
        return Pool(f"pool {self.pools}")

    def capture(self, graph: Graph, *, pool: Pool | None) -> Capture:
        return Capture(self, graph, pool or self.pool())


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


class Pool:
    """Memory of graphs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.users = 0
        self.was_used = False


class Graph:
    """Lets go of its pool at its end, if its capture was ended."""

    def __init__(self) -> None:
        self._pool: Pool | None = None

    def pool(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self._pool

    def ended(self, pool: Pool) -> None:
        self._pool = pool

    def replay(self) -> None:
        pass

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.users -= 1


class Capture:
    """As PyTorch's: what is left undone where the end fails is left undone here, and refused what is refused there."""

    def __init__(self, device: Device, graph: Graph, pool: Pool) -> None:
        self._device = device
        self._graph = graph
        self._pool = pool

    def __enter__(self) -> None:
        pool = self._pool
        assert pool not in self._device.open_pools, "beginAllocateToPool: already recording to mempool_id"
        assert pool.users > 0 or not pool.was_used, "use_count > 0"
        pool.users, pool.was_used = pool.users + 1, True
        self._device.streams.append(Stream(self._device, "capture"))
        self._device.open_pools.append(pool)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Invalidated):
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self._device.open_pools.remove(self._pool)
        self._graph.ended(self._pool)
        self._device.streams.pop()
        self._device.captured.append(self._pool)


class Invalidated(Exception):
    """After it a capture cannot be ended."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch.cuda, "Stream", made.stream)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", made.within)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", made.pool)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", made.capture)
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


def compute() -> None:
    """What a graph is captured of."""


def without_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def invalid() -> None:
    raise Invalidated


def test_graphs_that_are_kept_share_a_pool_and_trials_have_their_own(device: Device, lanes: CudaLanes) -> None:
    lanes.graph(compute, kept=False)
    lanes.graph(compute, kept=False)
    repeats = [lanes.graph(compute) for _ in range(3)]
    lanes.graph(compute, kept=False)
    first, second, *shared, last = device.captured
    assert len({first, second, shared[0], last}) == 4
    assert set(shared) == {shared[0]}
    assert shared[0].users == len(repeats)


def test_a_pool_that_no_graph_has_any_more_is_not_opened_again(device: Device, lanes: CudaLanes) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        lanes.graph(without_memory)
    repeat = lanes.graph(compute)
    del repeat
    _ = lanes.graph(compute)
    assert len(set(device.captured)) == 3


def test_after_a_capture_without_memory_the_others_still_share_theirs(device: Device, lanes: CudaLanes) -> None:
    repeats = [lanes.graph(compute)]
    with pytest.raises(torch.OutOfMemoryError):
        lanes.graph(without_memory)
    repeats.append(lanes.graph(compute))
    assert len(set(device.captured)) == 1


def test_a_trial_that_could_not_be_ended_is_no_matter_to_others(device: Device, lanes: CudaLanes) -> None:
    repeats = [lanes.graph(compute)]
    with pytest.raises(RuntimeError, match="previous error during capture"):
        lanes.graph(invalid, kept=False)
    repeats.append(lanes.graph(compute))
    assert len(set(device.captured)) == 1


def test_after_a_capture_that_could_not_be_ended_others_are_captured(device: Device, lanes: CudaLanes) -> None:
    repeats = [lanes.graph(compute)]
    with pytest.raises(RuntimeError, match="previous error during capture"):
        lanes.graph(invalid)
    assert device.streams[-1].name == "main"
    with pytest.raises(torch.OutOfMemoryError):
        lanes.graph(without_memory)
    repeats += [lanes.graph(compute), lanes.graph(compute)]
    kept, _, *others = device.captured
    assert others[0] is others[1] is not kept
