"""A file that is read again when it changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import pytest

from xpeft_server import watched_file
from xpeft_server.watched_file import WatchedFile


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
    watched = WatchedFile(path, read, invalid=ValueError, content="words")
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
