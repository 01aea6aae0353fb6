"""Store URLs: the one place that knows which stores there are."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from .errors import StoreUrlInvalid, shown
from .memory_store import MemoryStore
from .redis_store import RedisStore
from .sqlite_store import SqliteStore
from .store import ProfileStore

SCHEMES = "memory://, sqlite:///FILE, redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:///SOCKET"
SQLITE = "sqlite:///"
REDIS_OPTIONS = (
    "db",
    "max_connections",
    "socket_connect_timeout",
    "socket_timeout",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_keyfile",
)
CREDENTIALS = re.compile(r"(?<=://).*(?=@)")


def open_store(url: str) -> ProfileStore:
    """Build the store that a URL names, without connecting: that is ``store.open()``.

    ``memory://`` · ``sqlite:///relative.db`` · ``sqlite:////absolute.db`` · ``redis://``, ``rediss://``,
    ``unix://`` as in redis-py, with ``socket_timeout`` and ``socket_connect_timeout`` in seconds.

    Raises: StoreUrlInvalid, naming the value (without its credentials).
    """
    scheme = url.partition(":")[0]
    if url in ("memory://", "memory:"):
        return MemoryStore()
    if scheme == "sqlite":
        return _sqlite_store(url)
    if scheme in ("redis", "rediss", "unix"):
        return _redis_store(url)
    raise _invalid(url, f"it must be one of {SCHEMES}")


def _sqlite_store(url: str) -> SqliteStore:
    path = url.removeprefix(SQLITE)
    if path == url or not path or path.endswith("/"):
        raise _invalid(url, "it must be sqlite:///relative.db or sqlite:////absolute.db")
    if path == ":memory:":
        raise _invalid(url, "for profiles that are not kept there is memory://")
    if any(sign in path for sign in "?#\0"):
        raise _invalid(url, "it takes no options after the file")
    return SqliteStore(Path(path))


def _redis_store(url: str) -> RedisStore:
    try:
        parts = urlsplit(url)
        unknown = sorted(set(parse_qs(parts.query, keep_blank_values=True)) - set(REDIS_OPTIONS))
        if unknown:
            raise ValueError(f"it has the unknown option {shown(unknown[0])}")
        if parts.scheme == "unix" and not parts.path:
            raise ValueError("it must name a socket: unix:///SOCKET")
        if parts.scheme != "unix" and re.fullmatch(r"/?|/[0-9]+", parts.path) is None:
            raise ValueError(f"its path {shown(parts.path)} is not the number of a database")
        return RedisStore(url)
    except (ValueError, TypeError) as error:
        raise _invalid(url, str(error)) from error


def _invalid(url: str, reason: str) -> StoreUrlInvalid:
    return StoreUrlInvalid(f"store: {shown(CREDENTIALS.sub('…', url))} is not a store URL: {reason}")
