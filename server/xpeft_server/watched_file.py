"""Files that people may change while the server runs."""

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
    """The content of one file, or of several together, read again whenever one of them changes.

    Args:
        paths: the files; read at once.
        read: paths → content; raises ``invalid`` if they cannot be used.
        content: what they hold, for the log.
        in_force: the value until the files can be used, if they cannot at the start.
    Raises: ``invalid`` if they cannot be used at the start, and nothing is in force.

    Attributes:
        value: their content when they could last be used.
    """

    def __init__(
        self, *paths: Path, read: Callable[..., T], invalid: type[Exception], content: str, in_force: T | None = None
    ) -> None:
        self._paths = paths
        self._read = read
        self._invalid = invalid
        self._content = content
        self._last = self._look()
        self._stamps: list[FileStamp | None] | None = self._last  # of what is used
        try:
            self.value = read(*paths)
        except invalid as error:
            if in_force is None:
                raise
            log.error("the %s stay as they were: %s", content, error)
            self.value, self._stamps = in_force, None

    def refresh(self) -> None:
        """Read the files again if one changed. What cannot be used is logged once, changes nothing and is read again
        each time: it may have been the reading that failed, or one file be written and the other not yet."""
        stamps = self._look()
        is_new, self._last = stamps != self._last, stamps
        if stamps == self._stamps:
            return
        try:
            self.value = self._read(*self._paths)
        except self._invalid as error:
            if is_new:
                log.error("the %s stay as they were: %s", self._content, error)
        except Exception:
            if is_new:
                log.exception("the %s stay as they were: %s cannot be read", self._content, self._shown())
        else:
            self._stamps = stamps
            log.info("read the %s of %s", self._content, self._shown())

    async def watch(self) -> None:
        """Refresh once a second, off the event loop, until cancelled, whatever happens."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:
                log.exception("whether %s changed cannot be found out now", self._shown())

    def _look(self) -> list[FileStamp | None]:
        return [file_stamp(path) for path in self._paths]

    def _shown(self) -> str:
        return ", ".join(map(str, self._paths))


class FileStamp(NamedTuple):
    """Differs whenever the file was replaced, written, or had its owner or mode changed."""

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
