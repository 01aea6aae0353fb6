"""The restart with a tuned heap, in processes of its own: it replaces the program that asks for it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, sys
print(json.dumps([os.getpid(), sys.argv[1:], sys.flags.safe_path, os.environ.get("GLIBC_TUNABLES")]))
from xpeft_server.cli import heap
heap.restart_with_tuned_heap()
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def starts(**tunables: str) -> list[list[object]]:
    """What the program says each time that it starts."""
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | tunables
    command = [sys.executable, "-P", "-c", PROGRAM, "one", "two words", "--three"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@glibc
def test_it_starts_once_more_in_the_same_process_with_the_same_arguments() -> None:
    first, second = starts()
    assert first[:3] == second[:3] == [first[0], ["one", "two words", "--three"], True]
    assert first[3] is None
    assert "tcache_count=0" in str(second[3])


def test_what_the_user_set_stays() -> None:
    (only,) = starts(GLIBC_TUNABLES="glibc.malloc.check=0")
    assert only[3] == "glibc.malloc.check=0"
