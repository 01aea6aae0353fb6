"""What a benchmark started does not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xpeft_benchmarks.processes.workers import Worker

# A worker whose job does not end: it waits for an answer of a server that gives none.
PARENT = """
import signal, socket, sys
from xpeft_benchmarks.processes.workers import Worker

# Where the tests run in the background, Ctrl-C is ignored, and so it would be here.
signal.signal(signal.SIGINT, signal.default_int_handler)
silent = socket.create_server(("127.0.0.1", 0))
with Worker("xpeft_benchmarks.serve.load_client") as worker:
    request = "GET / HTTP/1.1\\r\\n\\r\\n"
    worker.ask(job="load", target="t", host="127.0.0.1", port=silent.getsockname()[1], requests=[request])
    print(worker._process.pid, flush=True)
    worker.ask(job="drive", target="t", concurrency=1, seconds=600, requests=1)
"""


@contextmanager
def parent() -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def lives(pid: int) -> bool:
    """Not so a process that has ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_measuring_process_ends_with_the_one_that_started_it(how: signal.Signals) -> None:
    with parent() as (process, worker):
        assert lives(worker)
        process.send_signal(how)
        process.wait(30)
        deadline = time.monotonic() + 30
        while lives(worker):
            assert time.monotonic() < deadline, f"{worker} goes on"
            time.sleep(0.01)


def test_a_measuring_process_is_ended_amid_its_job_where_a_benchmark_fails() -> None:
    worker = Worker("xpeft_benchmarks.serve.load_client")
    process = worker._process
    assert process.stdin is not None
    process.stdin.write('{"job": "drive", "target"')  # half of one, whose end it waits for
    with pytest.raises(ZeroDivisionError), worker:
        raise ZeroDivisionError
    assert process.returncode == -signal.SIGTERM


def test_ctrl_c_is_for_the_benchmark_alone() -> None:
    with Worker("xpeft_benchmarks.serve.load_client") as worker:
        assert os.getpgid(worker._process.pid) != os.getpgid(0)
