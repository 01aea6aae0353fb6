"""Sources of profiles, and imports and exports that say nothing on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xpeft_server.cli.profiles import transfer_progress


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str) -> Path:
        path = tmp_path / "p.jsonl"
        path.write_text("".join(each + "\n" for each in lines))
        return path

    return write


@pytest.fixture
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr(transfer_progress, "_LINE_SECONDS", 1e9)
