"""Launches for a GPU, on none: see placement.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from xpeft_server.model.families import FAMILIES

PROGRAM = Path(__file__).with_name("placement.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False)


def test_everything_that_a_launch_needs_is_on_the_device() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = {(family, "classify") for family in FAMILIES}
    wanted |= {(name, "generate") for name, family in FAMILIES.items() if family.decoder}
    assert {(each["family"], each["launch"], each["graph_tokens"]) for each in found} == {
        (*each, graph_tokens) for each in wanted for graph_tokens in (0, 64)
    }
    assert all((each["graphs"] > 0) is (each["graph_tokens"] > 0) for each in found)
    assert all(all(shape) for each in found for shape in each["shapes"])


def test_what_is_left_on_the_host_is_found() -> None:
    done = run("--astray")
    assert done.returncode == 1
    assert "found at least two devices" in done.stderr
