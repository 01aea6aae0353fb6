"""Which versions a SQLite file holds, known without asking it for each."""

from __future__ import annotations

import sqlite3

from ..names import ProfileKey

KEYS_MAX = 100_000


class VersionCache:
    """Versions that were read since the database last changed.

    ``probe`` is a connection that only ever asks ``PRAGMA data_version``: SQLite changes that number on it
    whenever any other connection, of this process or another, has committed. The question reads shared memory,
    takes a few microseconds and waits for nobody, so it may be asked on the event loop.
    """

    def __init__(self, probe: sqlite3.Connection) -> None:
        self._probe = probe
        self._stamp: int | None = None
        self._versions: dict[ProfileKey, str | None] = {}

    def current(self) -> dict[ProfileKey, str | None]:
        """The versions that are still true; what is read from now on may be added to this dictionary.

        After a change there is a new dictionary: a reader that began before it adds to the old one,
        which nobody reads any more. Raises: sqlite3.Error.
        """
        (stamp,) = self._probe.execute("PRAGMA data_version").fetchone()
        if stamp != self._stamp or len(self._versions) > KEYS_MAX:
            self._stamp = stamp
            self._versions = {}
        return self._versions

    def close(self) -> None:
        self._probe.close()
