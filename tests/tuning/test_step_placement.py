"""The placed step on a GPU that is not there: see step_placement.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xpeft_server.model.families import FAMILIES

PROGRAM = Path(__file__).with_name("step_placement.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False)


def test_everything_that_a_step_needs_is_on_the_device_and_nothing_asks_it() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = {(family, False) for family in FAMILIES}
    wanted |= {(name, True) for name, family in FAMILIES.items() if family.decoder}
    assert {(each["family"], each["completes"]) for each in found} == wanted
    assert len(found) == 2 * len(wanted)
    assert all(each["graphs"] == 1 and 0 < each["padding"] < 1 for each in found)


@pytest.mark.parametrize(
    ("way", "message"),
    [("--astray", "found at least two devices"), ("--asking", "_local_scalar_dense")],
)
def test_what_is_left_on_the_host_or_asked_for_is_found(way: str, message: str) -> None:
    done = run(way)
    assert done.returncode == 1
    assert message in done.stderr
