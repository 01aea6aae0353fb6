"""The engine alone works as the server's does: with its graphs, and with the next batch on the way."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xpeft_benchmarks.engine.worker import EngineWorker
from xpeft_benchmarks.ops.resident import load_resident
from xpeft_server.model import slots
from xpeft_server.model.graphs.graphed_forward import GraphedForward
from xpeft_server.model.lanes import HostLanes


class Asynchronous(HostLanes):
    asynchronous = True


class Device:
    """In place of resident profiles: every batch's size, and how many others it had when it was waited for."""

    def __init__(self, *, asynchronous: bool) -> None:
        self.classifier = SimpleNamespace(asynchronous=asynchronous)
        self.sizes: list[int] = []
        self.ahead: list[int] = []

    def launch(self, texts: list[str], owners: list[int]) -> Any:
        assert texts == [f"text {owner}" for owner in owners]
        self.sizes.append(len(texts))
        return SimpleNamespace(result=lambda: self.ahead.append(len(self.sizes) - len(self.ahead) - 1))


def driven(device: Device, *, batch: int) -> dict[str, Any]:
    worker = EngineWorker()
    worker._resident = device  # type: ignore[assignment]
    worker._pairs = [(f"text {owner}", owner) for owner in range(4)]  # type: ignore[misc]
    return worker({"job": "run", "batch": batch, "seconds": 60.0, "requests": 9})


def test_an_asynchronous_device_has_the_next_batch_while_one_is_waited_for() -> None:
    device = Device(asynchronous=True)
    answer = driven(device, batch=2)
    assert device.sizes == [2, 2, 2, 2, 1]
    assert device.ahead == [1, 1, 1, 1, 0]
    assert answer["answered"] == 9
    assert len(answer["latencies"]) == 5


@pytest.mark.parametrize(("asynchronous", "batch"), [(True, 1), (False, 2), (False, 1)])
def test_a_text_alone_and_a_device_that_computes_when_it_is_called_have_one_at_a_time(
    asynchronous: bool, batch: int
) -> None:
    device = Device(asynchronous=asynchronous)
    assert driven(device, batch=batch)["answered"] == 9
    assert set(device.ahead) == {0}


def test_graphs_are_captured_before_anything_is_measured(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[object] = []
    monkeypatch.setattr(slots, "lanes_of", lambda device: Asynchronous())
    monkeypatch.setattr(GraphedForward, "capture", lambda self: captured.append(self))
    how: dict[str, Any] = {"device": "cpu", "dtype": "float32", "profiles": 2, "seed": 0}
    load_resident(str(tiny_bert), "random:N=8,R=4,seed=0", **how)
    assert captured == []
    load_resident(str(tiny_bert), "random:N=8,R=4,seed=0", graph_tokens=64, **how)
    assert len(captured) == 1
