"""Finds the tickets of a batch whose profile version is no longer the store's."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..ticket import Ticket
from .cache import ProfileCache
from .loader import ProfileLoader


class Freshness:
    """Asks the store once for many tickets; stale versions leave the cache."""

    def __init__(self, loader: ProfileLoader, cache: ProfileCache) -> None:
        self._loader = loader
        self._cache = cache

    async def stale(self, tickets: Iterable[Ticket]) -> list[Ticket]:
        """The tickets whose profile has another version by now, or is gone.

        Only tickets whose version was not confirmed since they came are asked about. While the store cannot be asked,
        none counts as stale.
        """
        unsure = [ticket for ticket in tickets if not ticket.fresh]
        if not unsure:
            return []
        keys = list({ticket.request.profile for ticket in unsure})
        asked_at = time.monotonic()
        answers = await self._loader.versions(keys)
        answered_at = time.monotonic()
        for ticket in unsure:
            ticket.journey.note("store", asked_at, answered_at, question="versions")
        if answers is None:
            return []
        versions = dict(zip(keys, answers, strict=True))
        stale = []
        for ticket in unsure:
            if versions[ticket.request.profile] == ticket.profile.version:
                ticket.profile.asked_at = max(asked_at, ticket.profile.asked_at)
            else:
                self._cache.invalidate(ticket.profile)
                stale.append(ticket)
        return stale
