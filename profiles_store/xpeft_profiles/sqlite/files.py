"""The files of a SQLite database that is open, and whether they still have their names."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import StoreUnavailable


class SqliteFiles:
    """The database, its write-ahead log and the log's index, as they are when this is made: after a first read.

    From a connection's first read to the end of the last one all three are there and stay the same. What is written
    to a file that has no name any more is lost with the process, and who has not the log and the index that others
    have does not see what they write.

    Raises: StoreUnavailable if one is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # SQLite keeps both beside the file itself, not beside a link to it.
        real = path.resolve()
        self._names = (str(path), f"{real}-wal", f"{real}-shm")
        self._opened = self._now()

    def check(self) -> None:
        """Raises: StoreUnavailable unless all have their names."""
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
