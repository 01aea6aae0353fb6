"""The bare PLM at full speed: the device always has the next batch, and only what ended within the turn counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from xpeft_benchmarks.engine import bare_batches
from xpeft_benchmarks.engine.bare_batches import BareBatches
from xpeft_server.model.tokens.tokenizing import TokenizedText

TEXT = TokenizedText(np.zeros(8, np.int32), np.zeros(8, np.int32))


class Mark:
    def __init__(self, at: float) -> None:
        self.at = at

    def seconds_since(self, earlier: Mark) -> float:
        return self.at - earlier.at


class Device:
    """Computes each batch in a quarter of a second of its own clock, which is everybody's."""

    def __init__(self) -> None:
        self.launched: list[Any] = []
        self.waited = 0
        self.ahead: list[int] = []

    def perf_counter(self) -> float:
        return self.waited / 4

    def bare(self, texts: Sequence[TokenizedText]) -> Any:
        device, number = self, len(self.launched)

        class Batch:
            began, ended = Mark(number / 4), Mark((number + 1) / 4)

            def result(self) -> None:
                assert device.waited == number
                device.waited += 1
                device.ahead.append(len(device.launched) - device.waited)

        self.launched.append(texts)
        return Batch()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(bare_batches, "time", device)
    return device


def test_the_next_batch_is_launched_before_one_is_waited_for(device: Device) -> None:
    turn = BareBatches(device, [[TEXT] * 3] * 2).turn(2.0)
    assert set(device.ahead[:-1]) == {1}
    assert device.ahead[-1] == 0
    assert len(device.launched) == device.waited == turn.batches + 2


def test_a_turn_has_the_texts_and_the_device_s_time_of_its_batches(device: Device) -> None:
    turn = BareBatches(device, [[TEXT] * 3] * 2).turn(1.9)
    assert (turn.batches, turn.texts) == (8, 24)
    assert turn.busy_seconds == turn.seconds == 2.0
    assert turn.host_seconds != turn.host_seconds


def test_batches_come_again_and_again(device: Device) -> None:
    BareBatches(device, [[TEXT] * 3, [TEXT] * 3, [TEXT] * 3]).turn(1.0)
    one, two, three, again = device.launched[:4]
    assert again is one
    assert one is not two is not three
