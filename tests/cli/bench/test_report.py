from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
import typer

from xpeft_benchmarks.results import Result
from xpeft_server.cli.bench.report import report


def test_sigterm_unwinds_as_ctrl_c_does_and_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def measure() -> list[Result]:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)
        return []

    with pytest.raises(SystemExit) as ended:
        report("x", {}, measure, None)
    assert ended.value.code == 128 + signal.SIGTERM
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone/out.jsonl", "there is no folder {0}/gone"),
        ("", "it is a folder"),
        ("file/out.jsonl", "no folder {0}/file"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    def measure() -> list[Result]:
        raise AssertionError

    with pytest.raises(typer.Exit):
        report("x", {}, measure, tmp_path / name)
    assert reason.format(tmp_path) in capsys.readouterr().err


def test_what_a_run_measured_is_kept_elsewhere_where_its_place_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def measure() -> list[Result]:
        folder.rmdir()
        return [Result("one", "a meaning", "texts", [2.0])]

    with pytest.raises(typer.Exit):
        report("x", {}, measure, folder / "out.jsonl")
    (kept,) = tmp_path.glob("xpeft-*/out.jsonl")
    assert '"variant": "one"' in kept.read_text()
    assert capsys.readouterr().err.endswith(f"No such file or directory; what was made is in {kept}\n")


def test_what_a_run_measured_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    shown: list[str] = []
    results = [Result("one", "a meaning", "texts", [2.0])]
    report("x", {"seed": 3}, lambda: results, out, show=lambda found: shown.extend(each.variant for each in found))
    assert shown == ["one"]
    assert '"variant": "one"' in out.read_text()
    assert f"wrote {out}" in capsys.readouterr().out
