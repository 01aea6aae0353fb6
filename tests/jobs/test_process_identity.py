from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xpeft_server.jobs.process_identity import provably_dead, this_process

PROGRAM = "from xpeft_server.jobs.process_identity import this_process; print(this_process(), flush=True); input()"


@pytest.fixture
def other() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_this_process_lives() -> None:
    assert str(os.getpid()) in this_process().split()
    assert not provably_dead(this_process())


def test_another_process_is_dead_once_it_was_killed_even_if_nobody_asked_how(other: subprocess.Popen[str]) -> None:
    with other:
        assert other.stdout is not None
        name = other.stdout.readline().strip()
        assert not provably_dead(name)
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert provably_dead(name)
    assert provably_dead(name)


def test_a_process_of_the_same_number_that_began_at_another_time_is_another() -> None:
    place, _, start = this_process().rpartition(" ")
    assert provably_dead(f"{place} {int(start) - 1}")


@pytest.mark.parametrize("position", [0, 1, 2])
def test_of_another_host_boot_or_container_nothing_is_proved(position: int) -> None:
    words = this_process().split()
    words[position] = "other"
    words[3] = "999999999"
    assert not provably_dead(" ".join(words))


@pytest.mark.parametrize("name", ["", "host", "a b c d e"])
def test_of_what_is_no_process_nothing_is_proved(name: str) -> None:
    assert not provably_dead(name)
