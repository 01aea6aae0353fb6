"""How much room a store takes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import redis

_SQLITE: Final = "sqlite:///"


def store_bytes(url: str) -> int:
    """Of SQLite, the file once all is in it that was committed; of Redis, its ``used_memory``.

    Raises: StoreInvalid.
    """
    if url.startswith(_SQLITE):
        path = Path(url.removeprefix(_SQLITE))
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return path.stat().st_size
    try:
        with redis.Redis.from_url(url) as client:
            return int(client.info("memory")["used_memory"])
    except redis.RedisError as error:
        raise StoreInvalid(f"the store cannot be asked for its size: {error}") from error


class StoreInvalid(ValueError):
    """The benchmark cannot fill this store, or cannot be believed there."""
