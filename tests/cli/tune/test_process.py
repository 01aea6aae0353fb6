"""`xpeft tune --by` as a process that is stopped and killed in the middle and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xpeft_profiles import read_profile_file

USERS = 16

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def start(tiny_bert: Path, tmp_path: Path, out: Path, warm_programs: Path) -> Iterator[Start]:
    """The same command every time: one profile after the other, each of which takes a while.

    ``to_kill``: a process of its own, as SIGKILL would not reach one that is warm.
    """
    data = tmp_path / "data.jsonl"
    rows = [
        {"text": f"w{row % 20} w{user}", "label": "good" if row % 20 < 10 else "bad", "user": user}
        for user in range(USERS)
        for row in range(20)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["tune", "--by", "user", "--plm", str(tiny_bert)]
    command += ["--bank", "random:N=6,R=4,seed=3", "--device", "cpu", "--data", str(data), "--out", str(out)]
    command += ["--batch-profiles", "1", "--epochs", "10", "--profile", "u{user}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("XPEFT_")}
    started: list[subprocess.Popen[str]] = []

    def popen(*, to_kill: bool = False) -> subprocess.Popen[str]:
        program = Path(sys.executable).with_name("xpeft") if to_kill else warm_programs / "xpeft"
        # The program must not inherit that Ctrl-C is ignored, as it is where the tests run in the background.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            started.append(subprocess.Popen([program, *command], text=True, env=env, **pipes))
        finally:
            signal.signal(signal.SIGINT, before)
        return started[-1]

    yield popen
    for process in started:
        process.terminate()
        process.communicate(timeout=60)


def whole_lines(journal: Path) -> list[dict[str, Any]]:
    data = journal.read_bytes() if journal.exists() else b""
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def cut_off(process: subprocess.Popen[str], journal: Path, number: signal.Signals, *, already: int) -> str:
    """Send the signal once the journal has a line more; what it said on stderr."""
    deadline = time.monotonic() + 120
    while len(whole_lines(journal)) <= already:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no profile was done within two minutes"
        time.sleep(0.005)
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


def test_a_run_that_was_stopped_and_one_that_was_killed_go_on_where_they_were(start: Start, out: Path) -> None:
    journal = out / ".journal.jsonl"

    def written(lines: list[dict[str, Any]]) -> dict[str, int]:
        return {line["name"]: (out / f"{line['name']}.safetensors").stat().st_mtime_ns for line in lines}

    process = start()
    errors = cut_off(process, journal, signal.SIGINT, already=0)
    stopped = whole_lines(journal)
    assert 0 < len(stopped) < USERS
    assert process.returncode == 130
    assert errors.splitlines()[-1] == (
        f"stopped: {len(stopped)} of {USERS} profiles are done and in {journal}, the same command goes on from there"
    )
    assert not list(out.glob(".*.draft"))
    before = written(stopped)

    process = start(to_kill=True)
    errors = cut_off(process, journal, signal.SIGKILL, already=len(stopped))
    killed = whole_lines(journal)
    assert len(stopped) < len(killed) < USERS
    assert process.returncode == -signal.SIGKILL
    assert f"{len(stopped)} of the journal's profiles are done and skipped" in errors
    assert killed[: len(stopped)] == stopped
    before = written(killed) | before
    with journal.open("ab") as file:  # what a write that did not get to its end leaves
        file.write(b'{"name": "u7", "val')

    shown, errors = start().communicate(timeout=240)
    assert f"{len(killed)} of the journal's profiles are done and skipped" in errors
    assert "profiles tuned" in shown
    after = whole_lines(journal)
    assert after[: len(killed)] == killed
    assert sorted(line["name"] for line in after) == sorted(f"u{user}" for user in range(USERS))
    assert written(killed) == before
    for line in after:
        assert read_profile_file((out / f"{line['name']}.safetensors").read_bytes()).version == line["version"]
