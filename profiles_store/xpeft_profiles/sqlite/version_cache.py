"""Caches the versions in a SQLite file until the file changes."""

from __future__ import annotations

import sqlite3

from ..names import ProfileKey

KEYS_MAX = 100_000


class VersionCache:
    """The versions that were read since the database last changed.

    ``probe`` is a connection that only ever asks ``PRAGMA data_version``: SQLite changes that number whenever any other
    connection, of this process or another, has committed. The query reads shared memory, takes a few microseconds and
    never waits, so it may run on the event loop.
    """

    def __init__(self, probe: sqlite3.Connection) -> None:
        self._probe = probe
        self._stamp: int | None = None
        self._versions: dict[ProfileKey, str | None] = {}

    def current(self) -> dict[ProfileKey, str | None]:
        """The versions that are still current; what is read from now on may be added to this dictionary.

        After a change there is a new dictionary: a reader that began before the change adds to the old one, which is
        not read any more. Raises: sqlite3.Error.
        """
        (stamp,) = self._probe.execute("PRAGMA data_version").fetchone()
        if stamp != self._stamp or len(self._versions) > KEYS_MAX:
            self._stamp = stamp
            self._versions = {}
        return self._versions

    def close(self) -> None:
        self._probe.close()
