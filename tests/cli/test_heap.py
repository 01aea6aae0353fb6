"""The restart with a tuned heap, in processes of its own: it replaces the program that asks for it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from xpeft_server.cli import heap

GROWTH = """
import sys
if sys.argv[1] == "limited":
    from xpeft_server.cli import heap
    heap.limit_product_caches()
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(64, 96))
rows = torch.randn(2000, 96)
for size in range(1000, 2000, 5):
    if size == 1350:
        before = resident()  # 70 products have been made: as many as are kept, and some
    torch.ops.mkldnn._linear_pointwise(rows[:size], weight, None, "none", [], "")
print(resident() - before)
"""
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


@glibc
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN has no prepacked products here")
def test_products_of_ever_new_sizes_do_not_grow_the_process() -> None:
    """The second number shows that the first could be another one."""
    kept = {"LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    env = {name: value for name, value in os.environ.items() if name not in kept}
    env |= {"OMP_NUM_THREADS": "1", heap.VARIABLE: heap.TUNABLES}

    def grown(how: str) -> int:
        command = [sys.executable, "-P", "-c", GROWTH, how]
        return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    assert grown("limited") < 40_000_000 < grown("as it is")


def test_what_the_environment_says_of_products_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"LRU_CACHE_CAPACITY": "7"}
    monkeypatch.setattr(os, "environ", environment)
    heap.limit_product_caches()
    assert environment == {"LRU_CACHE_CAPACITY": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
