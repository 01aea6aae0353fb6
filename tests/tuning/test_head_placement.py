"""Heads fitted for a GPU, on none: see head_placement.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("head_placement.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False)


def test_heads_are_fitted_on_the_device_without_waiting_but_to_see_who_is_done() -> None:
    done = run()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("way", "why"), [("--astray", "found at least two devices"), ("--waiting", "nonzero")])
def test_what_is_left_on_the_host_or_waited_for_is_found(way: str, why: str) -> None:
    done = run(way)
    assert done.returncode == 1
    assert why in done.stderr
