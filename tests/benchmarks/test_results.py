from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from xpeft_benchmarks.results import Context, Result, table_rows, write_lines
from xpeft_benchmarks.rounds import Ratio

FIELDS = {
    "benchmark",
    "variant",
    "meaning",
    "unit",
    "per_second",
    "rounds",
    "ratios",
    "details",
    "command",
    "settings",
    "machine",
    "versions",
    "date",
}


def a_result() -> Result:
    return Result(
        variant="mixed distinct",
        meaning="32 profiles a batch",
        unit="texts",
        speeds=[100.0, 123.456789, 90.0],
        ratios=[Ratio("bare packed", 0.961234, 0.95, 0.97)],
        details={"batch": 32, "note": "words"},
    )


def test_a_line_says_what_was_measured_where_when_and_how(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_lines(path, [a_result(), a_result()], Context.now("ops", "xpeft bench ops", {"rounds": 3}))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2
    assert lines[0].keys() == FIELDS
    assert lines[0]["per_second"] == 100.0
    assert lines[0]["rounds"] == [100.0, 123.46, 90.0]
    assert lines[0]["ratios"] == [{"to": "bare packed", "median": 0.9612, "low": 0.95, "high": 0.97}]
    assert lines[0]["settings"] == {"rounds": 3}
    assert {"cpu", "cores", "memory_bytes", "load_average"} <= lines[0]["machine"].keys()
    assert {"python", "torch", "xpeft-server"} <= lines[0]["versions"].keys()
    assert lines[0]["date"].endswith("+00:00")


def test_lines_that_cannot_be_written_whole_leave_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.jsonl"
    path.write_text("earlier\n")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_lines(path, [a_result()], Context.now("ops", "xpeft bench ops", {}))
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]
    assert path.read_text() == "earlier\n"


def test_lines_go_to_a_pipe_as_well(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_lines(path, [a_result()], Context.now("ops", "xpeft bench ops", {}))
        assert json.loads(os.read(read, 1 << 16))["variant"] == "mixed distinct"
    finally:
        os.close(read)


def test_a_table_shows_speed_ratio_and_the_details_that_are_numbers() -> None:
    assert table_rows([a_result()]) == [
        ("mixed distinct", "100.0 texts/s", "0.961 of bare packed (0.950 to 0.970)", "batch 32.0")
    ]
