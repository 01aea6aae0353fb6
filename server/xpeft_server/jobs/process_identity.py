"""Names a process so that another process can check whether it still runs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


def this_process() -> str:
    """Host, boot, process namespace, process id and its start in clock ticks since the boot."""
    return f"{_place()} {os.getpid()} {_start_of(os.getpid())}"


def provably_dead(process: str) -> bool:
    """Whether the process ran where this one runs, and no longer does.

    For another host, boot or container nothing can be proved: two containers of one name both have a process 1.
    """
    place, _, start = process.rpartition(" ")
    place, _, pid = place.rpartition(" ")
    return place == _place() and pid.isdigit() and _start_of(int(pid)) != start


def _place() -> str:
    return f"{socket.gethostname()} {_BOOT_ID.read_text().strip()} {_NAMESPACE.readlink()}"


def _start_of(pid: int) -> str | None:
    """None if there is no such process, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
