"""Profiles that requests wait for until the store is asked for them, tenants in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Generic, TypeVar

from xpeft_profiles import ProfileKey

T = TypeVar("T")


class WantedProfiles(Generic[T]):
    """Each key once, with a future for everybody who wants it. Used from the event loop alone."""

    def __init__(self) -> None:
        # In order: the tenant whose turn is next, and each tenant's oldest key, come first.
        self._tenants: OrderedDict[str, OrderedDict[ProfileKey, list[asyncio.Future[T]]]] = OrderedDict()

    def want(self, key: ProfileKey) -> asyncio.Future[T]:
        """A future that whoever takes the key will set; cancel it to give the key up."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._tenants.setdefault(key.tenant, OrderedDict()).setdefault(key, []).append(future)
        return future

    def take(self, most: int) -> dict[ProfileKey, list[asyncio.Future[T]]]:
        """At most ``most`` keys that are still wanted, one of each tenant in turn."""
        taken: dict[ProfileKey, list[asyncio.Future[T]]] = {}
        while self._tenants and len(taken) < most:
            tenant, keys = self._tenants.popitem(last=False)
            key, futures = keys.popitem(last=False)
            if keys:
                self._tenants[tenant] = keys
            if not all(future.done() for future in futures):
                taken[key] = futures
        return taken
