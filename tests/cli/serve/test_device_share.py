from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from xpeft_server.cli.serve import device_share
from xpeft_server.cli.serve.device_share import DeviceShare

POLICY = """
import os, threading
from xpeft_server.cli.serve.device_share import run_when_idle
run_when_idle()
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(threading.get_native_id())))
thread.start()
thread.join()
print(os.sched_getscheduler(0) == seen[0] == os.SCHED_IDLE)
"""


class Time:
    """Passes only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize(("share", "rests"), [(0.5, [2.0, 3.0]), (0.25, [6.0, 9.0]), (0.8, [0.5, 0.75]), (1.0, [])])
def test_a_step_is_paid_for_with_rest(share: float, rests: list[float]) -> None:
    time = Time()
    pay = DeviceShare(share, clock=time.clock, sleep=time.sleep)
    for seconds in (2.0, 3.0):
        time.now += seconds
        pay()
    assert time.slept == pytest.approx(rests)


def test_what_the_device_still_does_counts_as_work() -> None:
    time = Time()

    def finish() -> None:
        time.now += 4.0

    DeviceShare(0.5, finish=finish, clock=time.clock, sleep=time.sleep)()
    assert time.slept == [4.0]


def test_every_thread_runs_only_when_the_cpu_is_idle() -> None:
    done = subprocess.run([sys.executable, "-c", POLICY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_where_that_is_refused_it_is_nice_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    niceness: list[int] = []
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(os, "nice", niceness.append)
    with caplog.at_level(logging.WARNING):
        device_share.run_when_idle()
    assert niceness == [19]
    assert "nice 19" in caplog.text
    assert "Operation not permitted" in caplog.text
