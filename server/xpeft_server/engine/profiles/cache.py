"""The host tier: an LRU cache of decoded profiles, bounded in bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict

from xpeft_profiles import Profile, ProfileKey

from ..metrics import Metrics

OVERHEAD = 2048
"""Bytes of a decoded profile's Python objects, besides its arrays and labels; rounded up."""


class CachedProfile:
    """A profile version from the store, decoded.

    Args:
        key, version, profile: as the store has them.
        labels: of its own or its shared head; None if it cannot classify.
        asked_at: monotonic seconds just before the latest query to which the store answered with this version.
    """

    __slots__ = ("asked_at", "key", "labels", "profile", "size", "version")

    def __init__(
        self, key: ProfileKey, version: str, profile: Profile, labels: tuple[str, ...] | None, asked_at: float
    ) -> None:
        self.key = key
        self.version = version
        self.profile = profile
        self.labels = labels
        self.asked_at = asked_at
        arrays = (profile.mask_a, profile.mask_b, profile.ln_weight, profile.ln_bias, profile.head_weight)
        self.size = OVERHEAD + sum(array.nbytes for array in arrays if array is not None)
        self.size += sum(map(sys.getsizeof, profile.labels or ()))


class ProfileCache:
    """Used from the event loop alone. Tickets keep a version that was evicted."""

    def __init__(self, limit_bytes: int, metrics: Metrics) -> None:
        self._limit = limit_bytes
        self._bytes = 0
        self._profiles: OrderedDict[ProfileKey, CachedProfile] = OrderedDict()
        self._metrics = metrics

    def get(self, key: ProfileKey) -> CachedProfile | None:
        found = self._profiles.get(key)
        if found is None:
            self._metrics.cache_misses["host"].inc()
            return None
        self._profiles.move_to_end(key)
        self._metrics.cache_hits["host"].inc()
        return found

    def put(self, cached: CachedProfile) -> None:
        self._forget(cached.key)
        self._profiles[cached.key] = cached
        self._bytes += cached.size
        while self._bytes > self._limit and len(self._profiles) > 1:
            self._forget(next(iter(self._profiles)))
            self._metrics.cache_evictions["host"].inc()
        self._metrics.profiles_resident["host"].set(len(self._profiles))

    def invalidate(self, cached: CachedProfile) -> None:
        """Drop this version, unless another has taken its place."""
        if self._profiles.get(cached.key) is cached:
            self._forget(cached.key)
            self._metrics.cache_invalidations["host"].inc()
            self._metrics.profiles_resident["host"].set(len(self._profiles))

    def _forget(self, key: ProfileKey) -> None:
        found = self._profiles.pop(key, None)
        if found is not None:
            self._bytes -= found.size
