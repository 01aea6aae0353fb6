from __future__ import annotations

import os
from pathlib import Path

import pytest

from xpeft_server.cli.host_memory import host_memory

MIB = 1 << 20
INSTALLED = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """Three control groups within each other, of both versions."""
    for root, name in ((tmp_path, "memory.max"), (tmp_path / "memory", "memory.limit_in_bytes")):
        for path, limit in (("", "max"), ("pod", str(64 * MIB)), ("pod/box", str(256 * MIB)), ("other", str(MIB))):
            (root / path).mkdir(parents=True, exist_ok=True)
            (root / path / name).write_text(limit + "\n")
    return tmp_path


def member_of(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "cgroup"
    file.write_text("".join(line + "\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("0::/pod/box",), 64 * MIB),
        (("0::/pod",), 64 * MIB),
        (("0::/other",), MIB),
        (("0::/",), INSTALLED),
        (("0::/gone/box",), INSTALLED),
        (("5:cpu,cpuacct:/other", "4:memory:/pod/box", "0::/"), 64 * MIB),
        (("5:cpu,cpuacct:/other",), INSTALLED),
    ],
)
def test_the_lowest_limit_counts(groups: Path, lines: tuple[str, ...], expected: int) -> None:
    assert host_memory(groups, member_of(groups, *lines)) == expected


def test_without_control_groups_it_is_the_machine_s(tmp_path: Path) -> None:
    assert host_memory(tmp_path, tmp_path / "nothing") == INSTALLED


def test_a_limit_beyond_the_machine_s_memory_is_none(groups: Path) -> None:
    (groups / "other" / "memory.max").write_text(str(1 << 60))
    assert host_memory(groups, member_of(groups, "0::/other")) == INSTALLED


def test_a_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert host_memory(tmp_path, tmp_path / "nothing") == 4 << 30
