"""Launches for a GPU, on none: see placement.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xpeft_server.model.loading.families import FAMILIES

PROGRAM = Path(__file__).with_name("placement.py")


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_everything_that_a_launch_needs_is_on_the_device(lines: list[dict[str, Any]]) -> None:
    found = [each for each in lines if "launch" in each]
    wanted = {(family, "classify") for family in FAMILIES}
    wanted |= {(name, "generate") for name, family in FAMILIES.items() if family.decoder}
    assert {(each["family"], each["launch"], each["graph_tokens"]) for each in found} == {
        (*each, graph_tokens) for each in wanted for graph_tokens in (0, 64)
    }
    assert all((each["graphs"] > 0) is (each["graph_tokens"] > 0) for each in found)
    assert all(all(shape) for each in found for shape in each["shapes"])


def test_what_is_left_on_the_host_is_found(lines: list[dict[str, Any]]) -> None:
    (said,) = [each["astray"] for each in lines if "astray" in each]
    assert re.search("found (at least|two different) (two )?devices", said), said
