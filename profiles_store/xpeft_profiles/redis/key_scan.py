"""Keys that are found among all that a Redis database has: no list of them has to be kept right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import redis.asyncio

from .name_reader import NameReader

Ask = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
SCANNED = 5_000  # keys that one step looks at


class KeyScan:
    """Args: read: runs a command; raises StoreUnavailable."""

    def __init__(self, client: redis.asyncio.Redis, names: NameReader, read: Ask) -> None:
        self._client = client
        self._names = names
        self._read = read

    async def keys(self, pattern: str) -> AsyncIterator[Sequence[bytes]]:
        """Some at a time; one may come twice."""
        cursor = 0
        while True:
            cursor, keys = await self._read(
                lambda at=cursor: self._client.scan(at, match=pattern, count=SCANNED)  # type: ignore[misc]
            )
            yield keys
            if not cursor:
                return

    async def tenants(self, kind: str) -> AsyncIterator[str]:
        """Those with a key ``xpeft:{TENANT}:KIND``, each once."""
        begin, end = "xpeft:{", f"}}:{kind}"
        seen: set[str] = set()
        async for keys in self.keys(f"{begin}*{end}"):
            found = self._names.readable((key[len(begin) : -len(end)] for key in keys), "a tenant")
            for tenant in {*found} - seen:
                seen.add(tenant)
                yield tenant
