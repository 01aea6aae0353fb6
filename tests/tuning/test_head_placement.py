"""Heads fitted for a GPU, on none: see head_placement.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("head_placement.py")


@pytest.fixture(scope="module")
def failures() -> dict[str, str | None]:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def test_heads_are_fitted_on_the_device_without_waiting_but_to_see_who_is_done(failures: dict[str, str | None]) -> None:
    assert failures["sound"] is None, failures["sound"]


@pytest.mark.parametrize(
    ("way", "why"), [("astray", "found (at least|two different) (two )?devices"), ("waiting", "nonzero")]
)
def test_what_is_left_on_the_host_or_waited_for_is_found(failures: dict[str, str | None], way: str, why: str) -> None:
    failure = failures[way]
    assert failure is not None
    assert re.search(why, failure), failure
