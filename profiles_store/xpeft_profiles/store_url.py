"""Store URLs: the one place that knows which stores there are."""

from __future__ import annotations

import math
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from .errors import StoreUrlInvalid, shown
from .memory.store import MemoryStore
from .redis.store import RedisStore
from .sqlite.store import SqliteStore
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
CERTIFICATE_CHECKS = ("none", "optional", "required")
POSITIVE_OPTIONS = ("max_connections", "socket_connect_timeout", "socket_timeout")
CREDENTIALS = re.compile(r"(?<=://).*(?=@)")


def open_store(url: str, *, read_only: bool = False) -> ProfileStore:
    """Build the store that a URL names, without connecting: that is ``store.open()``.

    ``memory://`` · ``sqlite:///relative.db`` · ``sqlite:////absolute.db`` · ``redis://``, ``rediss://``,
    ``unix://`` as in redis-py, with ``socket_timeout`` and ``socket_connect_timeout`` in seconds.

    Args: read_only: for who only reads; it says how a file is opened, see `SqliteStore`.
    Raises: StoreUrlInvalid, naming the value (without its credentials).
    """
    scheme = url.partition(":")[0]
    if url in ("memory://", "memory:"):
        return MemoryStore()
    if scheme == "sqlite":
        return _sqlite_store(url, read_only=read_only)
    if scheme in ("redis", "rediss", "unix"):
        return _redis_store(url)
    raise _invalid(url, f"it must be one of {SCHEMES}")


def _sqlite_store(url: str, *, read_only: bool) -> SqliteStore:
    path = url.removeprefix(SQLITE)
    if path == url or not path or path.endswith("/"):
        raise _invalid(url, "it must be sqlite:///relative.db or sqlite:////absolute.db")
    if path == ":memory:":
        raise _invalid(url, "for profiles that are not kept there is memory://")
    if any(sign in path for sign in "?#\0"):
        raise _invalid(url, "it takes no options after the file")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise _invalid(url, f"there is no folder {folder}")
    return SqliteStore(Path(path), read_only=read_only)


def _redis_store(url: str) -> RedisStore:
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, keep_blank_values=True)
        store = RedisStore(url)
    except (ValueError, TypeError) as error:
        # Their words may quote a part of the URL, the password for one.
        raise _invalid(url, f"it must be like {SCHEMES}") from error
    for name, values in options.items():
        if name not in REDIS_OPTIONS:
            raise _invalid(url, f"it has the unknown option {shown(name)}")
        if name.startswith("ssl_") and parts.scheme != "rediss":
            raise _invalid(url, f"{name} is for rediss://, which speaks TLS")
        if name == "ssl_cert_reqs" and values[0] not in CERTIFICATE_CHECKS:
            raise _invalid(url, f"ssl_cert_reqs must be one of {', '.join(CERTIFICATE_CHECKS)}")
        if name in POSITIVE_OPTIONS and not 0 < float(values[0]) < math.inf:
            raise _invalid(url, f"{name} must be greater than 0")
    if parts.scheme == "unix" and not parts.path:
        raise _invalid(url, "it must name a socket: unix:///SOCKET")
    if parts.scheme != "unix" and re.fullmatch(r"/?|/[0-9]+", parts.path) is None:
        raise _invalid(url, "its path must be the number of a database")
    return store


def _invalid(url: str, reason: str) -> StoreUrlInvalid:
    return StoreUrlInvalid(f"store: {shown(CREDENTIALS.sub('…', url))} is not a store URL: {reason}")
