from __future__ import annotations

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
