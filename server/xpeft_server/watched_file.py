"""A file that people may change while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 1.0

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """What the file says, read again whenever it is another one than before.

    Args:
        path: the file; read at once.
        read: path → what it says; raises ``invalid`` if it cannot be used.
        content: what the file holds, for the log.
    Raises: ``invalid`` if the file cannot be used at the start.

    Attributes:
        value: what the file said when it could last be used.
    """

    def __init__(self, path: Path, read: Callable[[Path], T], *, invalid: type[Exception], content: str) -> None:
        self._path = path
        self._read = read
        self._invalid = invalid
        self._content = content
        self._stamp = self._last = self._look()  # of what is used, and of the last look
        self.value = read(path)

    def refresh(self) -> None:
        """Read the file again if it changed; one that cannot be used is logged once, changes nothing and is read again
        each time, for it may have been the reading that failed."""
        stamp = self._look()
        is_new, self._last = stamp != self._last, stamp
        if stamp == self._stamp:
            return
        try:
            self.value = self._read(self._path)
        except self._invalid as error:
            if is_new:
                log.error("the %s stay as they were: %s", self._content, error)
        except Exception:
            if is_new:
                log.exception("the %s stay as they were: %s cannot be read", self._content, self._path)
        else:
            self._stamp = stamp
            log.info("read the %s of %s", self._content, self._path)

    async def watch(self) -> None:
        """Refresh once a second, off the event loop, until cancelled."""
        await refresh_for_ever(self.refresh)

    def _look(self) -> FileStamp | None:
        return file_stamp(self._path)


class FileStamp(NamedTuple):
    """Two that differ are of different files, or of one that was written, or given to somebody, between them."""

    inode: int
    modified: int
    changed: int
    size: int


def file_stamp(path: Path) -> FileStamp | None:
    """Of the file that ``path`` leads to now; None where there is none that can be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return FileStamp(status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


async def refresh_for_ever(refresh: Callable[[], None]) -> None:
    """Once a second, off the event loop, until cancelled, whatever happens."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            await asyncio.to_thread(refresh)
        except Exception:
            log.exception("whether files have changed cannot be found out now")
