"""What a number was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from xpeft_server.version import VERSION

PACKAGES: Final = ("torch", "transformers", "tokenizers", "numpy", "peft", "uvicorn", "uvloop")


def machine() -> dict[str, object]:
    """CPU, cores that this process may use, memory in bytes, and the load of the last minute as it starts."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The kernel's name for the processor, with the instructions that bfloat16 products are made of."""
    try:
        fields = dict(_field(line) for line in cpuinfo.read_text().splitlines() if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    name = fields.get("model name", platform.machine())
    flags = set(fields.get("flags", "").split()) & {"avx512_bf16", "amx_bf16"}
    return f"{name} ({', '.join(sorted(flags))})" if flags else name


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Python's, this project's, and those of the packages that are installed."""
    found = {"python": platform.python_version(), "xpeft-server": VERSION}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
