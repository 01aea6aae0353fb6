"""The profiler's trace: what is in it, when it is written, and what happens where it cannot be."""

from __future__ import annotations

import gzip
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xpeft_profiles import Profile, ProfileKey
from xpeft_server.engine.device.profiler import DeviceProfiler
from xpeft_server.engine.requests import ClassifyRequest, TextInput
from xpeft_server.model.recorded import recorded

MakeProfile = Callable[..., Profile]


def names(path: Path) -> list[str]:
    """Of all ranges and operators that began and ended."""
    data = path.read_bytes()
    events = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["traceEvents"]
    return [event["name"] for event in events if event.get("ph") == "X"]


def take_turns(profiler: DeviceProfiler, count: int) -> None:
    for _ in range(count):
        with profiler.turn("batch"):
            torch.ones(4) @ torch.ones(4)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_the_turns_after_the_first_are_written_when_they_are_all_there(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / name
    profiler = DeviceProfiler(path, 3, skipped=2)
    take_turns(profiler, 4)
    assert not path.exists()
    take_turns(profiler, 1)
    found = names(path)
    assert found.count("xpeft::batch") == 3
    assert found.count("aten::dot") == 3
    assert caplog.messages[-1] == f"the profile of 3 batches and steps is in {path}"
    written = path.read_bytes()
    take_turns(profiler, 5)
    profiler.close()
    assert path.read_bytes() == written
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_recorded_is_written_when_the_thread_ends_earlier(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("an earlier one")
    profiler = DeviceProfiler(path, 100, skipped=1)
    take_turns(profiler, 3)
    profiler.close()
    assert names(path).count("xpeft::batch") == 2


def test_where_there_was_nothing_to_record_nothing_is_written_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiler = DeviceProfiler(tmp_path / "trace.json", 3)
    take_turns(profiler, 1)
    profiler.close()
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages == ["nothing was profiled: the first 5 batches and steps are not recorded"]


def test_a_file_that_cannot_be_written_any_more_ends_no_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gone" / "trace.json"
    take_turns(DeviceProfiler(path, 1, skipped=0), 1)
    (line,) = caplog.messages
    assert line.startswith(f"the profile of 1 batches and steps cannot be written to {path}: ")


def test_a_range_without_a_profiler_is_nothing() -> None:
    assert recorded("fill") is recorded("forward")


async def test_an_engine_is_profiled_in_the_words_of_its_stages_and_in_operators(
    make_classifier: Any, store: Any, profile: MakeProfile, tmp_path: Path, start_engine: Any
) -> None:
    path = tmp_path / "trace.json"
    engine = await start_engine()
    written = threading.Event()
    profiler = DeviceProfiler(path, 2, skipped=1)
    whole = profiler.close
    profiler.close = lambda: (whole(), written.set())[0]  # type: ignore[func-returns-value, method-assign, assignment]
    engine._device._profiler = profiler
    for number in range(3):
        key = ProfileKey("t", f"p{number}")
        await store.put(key, profile(engine.geometry, number))
        await engine.classify(ClassifyRequest(key, (TextInput("w1 w2"),)))
    assert written.wait(20)
    found = names(path)
    for each in ("batch", "fill", "pack", "forward", "heads"):
        assert found.count(f"xpeft::{each}") == 2, each
    assert found.count("xpeft::adapters") == 2 * engine.geometry.blocks
    assert "aten::addmm" in found or "aten::mm" in found
