from __future__ import annotations

import io
import sys

import pytest

from xpeft_server.cli.profiles import transfer_progress
from xpeft_server.cli.profiles.transfer_progress import TransferProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("total", [1000, None])
def test_a_terminal_shows_a_bar_with_profiles_and_their_rate(
    monkeypatch: pytest.MonkeyPatch, total: int | None
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    progress = TransferProgress("imported", total=total)
    with progress.shown():
        progress.step(4096, 500)
        progress.step(8192, 1000)
    shown = terminal.getvalue()
    assert "8,192 profiles" in shown
    assert "profiles/s" in shown
    assert progress.seconds > 0


def test_elsewhere_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = TransferProgress("exported", total=None)
    with progress.shown():
        progress.step(5, 0)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(transfer_progress, "_LINE_SECONDS", 0.0)
        progress.step(10, 0)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("exported 10 profiles, ")
    share = TransferProgress("imported", total=200)
    share.step(20, 50)
    assert capsys.readouterr().err.endswith(", 25 %\n")
