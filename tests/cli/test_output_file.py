from __future__ import annotations

import os
from pathlib import Path

import pytest

from xpeft_server.output_file import output_file


def test_a_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with output_file(path, overwrite=False) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    draft = output_file(path, overwrite=True)
    draft.__enter__().write(b"half")
    assert not draft.__exit__(RuntimeError, RuntimeError("stop"), None)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    draft = output_file(path, overwrite=False)
    draft.__enter__().write(b"mine")
    path.write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        draft.__exit__(None, None, None)
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path: Path, there: bool) -> None:
    link, path = tmp_path / "link", tmp_path / "elsewhere" / "out"
    path.parent.mkdir()
    link.symlink_to(path)
    if there:
        path.write_bytes(b"old")
    with output_file(link, overwrite=there) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [link, path]


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_that_is_replaced_keeps_its_mode_from_the_first_byte_on(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    path.chmod(mode)
    with output_file(path, overwrite=True) as file:
        file.write(b"new")
        assert os.fstat(file.fileno()).st_mode & 0o777 == mode
    assert path.stat().st_mode & 0o777 == mode
