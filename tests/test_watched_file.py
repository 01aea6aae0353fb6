"""A file that is read again when it changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import pytest

from xpeft_server import watched_file
from xpeft_server.watched_file import WatchedFile, file_stamp


async def test_whatever_a_file_says_for_a_while_it_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_file, "CHECK_SECONDS", 0.01)
    path = tmp_path / "words"

    def read(path: Path) -> str:
        text = path.read_text()
        if text == "bug":
            raise RecursionError("too deep")
        if text == "wrong":
            raise ValueError("it is wrong")
        return text

    path.write_text("first")
    watched = WatchedFile(path, read=read, invalid=ValueError, content="words")
    watching = asyncio.create_task(watched.watch())
    async with asyncio.timeout(20):
        for text, said in (("wrong", "it is wrong"), ("bug", "too deep"), ("second", "read the words")):
            path.write_text(text)
            with caplog.at_level(logging.INFO):
                while said not in caplog.text:
                    await asyncio.sleep(0.01)
            assert watched.value == ("second" if text == "second" else "first")
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


def test_a_change_that_could_not_be_read_for_a_moment_is_read_at_the_next_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, failures = tmp_path / "words", [OSError("too many open files"), ValueError("half"), OSError("again")]
    path.write_text("first")
    watched = WatchedFile(path, read=Path.read_text, invalid=ValueError, content="words")
    path.write_text("second")

    def read(path: Path) -> str:
        if failures:
            raise failures.pop(0)
        return path.read_text()

    watched._read = read
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            watched.refresh()
            assert watched.value == "first"
        watched.refresh()
    assert watched.value == "second"
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    watched.refresh()
    assert len(caplog.records) == 2


def test_where_something_is_in_force_already_a_file_need_not_be_good_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "words"
    with pytest.raises(OSError, match="No such file"):
        WatchedFile(path, read=Path.read_text, invalid=OSError, content="words")
    watched = WatchedFile(path, read=Path.read_text, invalid=OSError, content="words", in_force="first")
    watched.refresh()
    assert watched.value == "first"
    path.write_text("second")
    watched.refresh()
    assert watched.value == "second"
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_file_that_fails_again_after_it_was_good_is_logged_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "words"
    path.write_text("first")
    watched = WatchedFile(path, read=Path.read_text, invalid=OSError, content="words")
    for _ in range(2):
        folder.rename(tmp_path / "away")
        watched.refresh()
        watched.refresh()
        (tmp_path / "away").rename(folder)
        watched.refresh()
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_a_file_that_is_given_to_somebody_else_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.touch()
    before = file_stamp(path)
    assert file_stamp(path) == before
    path.chmod(0o640)
    assert file_stamp(path) != before
