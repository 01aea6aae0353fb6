"""Keeps the write-ahead log of a SQLite file short."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

LOG_BYTES: Final = 64 << 20
READERS_SECONDS: Final = 0.1
"""How long a write, once in `LOG_BYTES`, waits for readers before it truncates the log."""


class WriteAheadLog:
    """SQLite restarts its log only while nobody reads from it, so with overlapping reads it would grow for ever.

    Args: connection: the one that writes; busy_seconds: how long it waits for another process's write.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, busy_seconds: float) -> None:
        self._path = Path(f"{path.resolve()}-wal")
        self._connection = connection
        self._busy_seconds = busy_seconds
        self._most = LOG_BYTES
        # Where SQLite itself restarts the log.
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")

    def cut(self) -> None:
        """Truncate a log that is too long; not inside a transaction. Raises: sqlite3.Error, OSError."""
        size = self._path.stat().st_size
        if size <= LOG_BYTES:
            self._most = LOG_BYTES
        if size <= self._most:
            return
        # Readers that begin once the whole log is in the file do not use it: only earlier ones are waited for.
        self._wait_at_most(READERS_SECONDS)
        try:
            (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._wait_at_most(self._busy_seconds)
        self._most = size + LOG_BYTES if busy else LOG_BYTES

    def _wait_at_most(self, seconds: float) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")
