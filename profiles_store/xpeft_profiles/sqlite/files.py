"""Checks that the files of an open SQLite database are still the ones at their paths."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import StoreUnavailable


class SqliteFiles:
    """The database, its write-ahead log and the log's index, as they are when this is made, after a first read.

    All three exist, unchanged, from the first read of the first connection until the last one closes. What is written
    to a file that was unlinked is lost with the process, and a connection with another log or index than others does
    not see what they write.

    Raises: StoreUnavailable if one is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # SQLite keeps both beside the file itself, not beside a link to it.
        real = path.resolve()
        self._names = (str(path), f"{real}-wal", f"{real}-shm")
        self._opened = self._now()

    def check(self) -> None:
        """Raises: StoreUnavailable if a path leads to another file by now, or to none."""
        now = self._now()
        if now != self._opened:
            name = next(name for name, one, other in zip(self._names, now, self._opened, strict=True) if one != other)
            raise StoreUnavailable(
                f"the store {self._path} failed: {name} is another file now: put it back, or restart the server"
            )

    def _now(self) -> list[tuple[int, int]]:
        """Device and number of each."""
        try:
            found = [os.stat(name) for name in self._names]  # noqa: PTH116
        except OSError as error:
            raise StoreUnavailable(f"the store {self._path} failed: {error}") from error
        return [(each.st_dev, each.st_ino) for each in found]
