"""The placed step on a GPU that is not there: see step_placement.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xpeft_server.model.loading.families import FAMILIES

PROGRAM = Path(__file__).with_name("step_placement.py")
# Families of which every kind of masks is stepped; the others have hard ones.
ALL_KINDS = FAMILIES if os.environ.get("NIGHTLY") == "1" else ("bert", "gpt2")


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """All that the program says, the last of it about faults."""
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_everything_that_a_step_needs_is_on_the_device_and_nothing_asks_it(lines: list[dict[str, Any]]) -> None:
    found = lines[:-1]
    wanted = {
        (name, kind, completes)
        for name, family in FAMILIES.items()
        for kind in (("hard", "soft") if name in ALL_KINDS else ("hard",))
        for completes in ((False, True) if family.decoder else (False,))
    }
    assert {(each["family"], each["kind"], each["completes"]) for each in found} == wanted
    assert len(found) == len(wanted)
    assert all(each["graphs"] == 1 and 0 < each["padding"] < 1 for each in found)


@pytest.mark.parametrize(
    ("way", "message"),
    [("astray", "found (at least|two different) (two )?devices"), ("asking", "_local_scalar_dense")],
)
def test_what_is_left_on_the_host_or_asked_for_is_found(lines: list[dict[str, Any]], way: str, message: str) -> None:
    failure = lines[-1][way]
    assert failure is not None
    assert re.search(message, failure), failure
