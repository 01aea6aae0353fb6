from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from xpeft_server.cli.out_option import check_out_file, write_out_file

DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """For temporary files, at home and here."""
    folders = [tmp_path / name for name in ("temporary", "home", "here")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folders[0]))
    monkeypatch.setenv("HOME", str(folders[1]))
    monkeypatch.chdir(folders[2])
    return folders


def writes_only_below(folder: Path | None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        if folder not in path.parents:
            raise DISK_FULL
        path.write_bytes(b"all of it")

    return write


@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_its_place_does_not_take_is_kept_where_the_error_says(
    places: list[Path], number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bank.safetensors"
    with pytest.raises(typer.Exit):
        write_out_file(out, writes_only_below(places[number]))
    (kept,) = (each for folder in places for each in folder.rglob("*") if each.is_file())
    assert kept.is_relative_to(places[number])
    assert (kept.name, kept.read_bytes()) == ("bank.safetensors", b"all of it")
    said = f"xpeft: {out} cannot be written: No space left on device; what was made is in {kept}\n"
    assert capsys.readouterr().err == said


def test_what_no_place_takes_leaves_nothing_behind(
    places: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        write_out_file(tmp_path / "bank", writes_only_below(None))
    assert capsys.readouterr().err.endswith("No space left on device; and no other place takes it\n")
    assert [list(folder.iterdir()) for folder in places] == [[], [], []]


def test_a_disk_without_room_is_told_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bank"
    check_out_file(out, force=False)
    with pytest.raises(typer.Exit):
        check_out_file(out, force=False, size=1 << 80)
    assert capsys.readouterr().err == f"xpeft: {out} cannot be written: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


def test_the_place_that_a_link_leads_to_is_what_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "bank"
    link.symlink_to(tmp_path / "nowhere" / "bank")
    with pytest.raises(typer.Exit):
        check_out_file(link, force=False)
    assert capsys.readouterr().err == f"xpeft: {link} cannot be written: No such file or directory\n"
