"""Every kernel compiles for GPUs that are not here, spills nothing and leaves room for a second program beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("ahead_of_time.py")
# An SM of sm_80 has 164 KiB of shared memory; a program takes 1 KiB beside its own.
MOST_SHARED = 53 * 1024
# 65,536 registers an SM, 128 threads a program: three programs as well.
MOST_REGISTERS = 168


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run([sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_operator_is_compiled_for_every_architecture(compiled: list[dict[str, Any]]) -> None:
    seen = {(each["kernel"].split()[0], each["kernel"].split()[1], each["architecture"]) for each in compiled}
    operators = ("aggregate_adapters", "apply_adapters", "apply_heads", "attend_packed", "attend_cache", "mean_rows")
    assert seen == {(name, dtype, arch) for name in operators for dtype in ("bf16", "fp32") for arch in (80, 90, 100)}


def test_nothing_is_spilled(compiled: list[dict[str, Any]]) -> None:
    assert [each for each in compiled if each["spilled"]] == []


def test_three_programs_fit_on_a_multiprocessor(compiled: list[dict[str, Any]]) -> None:
    assert [each for each in compiled if each["shared"] > MOST_SHARED or each["registers"] > MOST_REGISTERS] == []
