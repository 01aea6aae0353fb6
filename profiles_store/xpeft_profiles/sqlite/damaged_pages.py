"""Damaged pages of a SQLite file: what lies on one cannot be read, all else can."""

from __future__ import annotations

import sqlite3
from typing import Final

from ..store import StoredProfile

UNREADABLE: Final = StoredProfile("", b"", 0.0, 0.0)
"""In the place of a profile on a damaged page: no record can be decoded to it."""

# Where nothing is: behind the first and the last way through the index, and through the table.
ENDS: Final = (
    (
        "SELECT 1 FROM profiles WHERE tenant = '' AND name = ''",
        "SELECT 1 FROM profiles WHERE tenant = char(0x10FFFF) AND name = ''",
    ),
    (
        "SELECT 1 FROM profiles WHERE rowid = -9223372036854775808",
        "SELECT 1 FROM profiles WHERE rowid = 9223372036854775807",
    ),
)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether a page was read that holds what SQLite never wrote; the low byte of a code is its kind."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT


def check_readable(connection: sqlite3.Connection) -> None:
    """Raises: sqlite3.Error if there is no way to any profile."""
    for ways in ENDS:
        problems = [problem for way in ways if (problem := _problem(connection, way))]
        if len(problems) == len(ways):
            raise problems[0]


def _problem(connection: sqlite3.Connection, way: str) -> sqlite3.Error | None:
    """Raises: sqlite3.Error, unless it is a damaged page."""
    try:
        connection.execute(way).fetchone()
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        return error
    return None
