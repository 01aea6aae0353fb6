from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xpeft_profiles import BankGeometry, Profile, ProfileKey
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.profiles.cache import CachedProfile, ProfileCache

KEY = ProfileKey("t", "p")
GEOMETRY = BankGeometry("sha256:" + "ab" * 32, blocks=2, adapters=12, hidden=8, width=4)


def cached(profile: Callable[..., Profile], seed: int) -> CachedProfile:
    made = profile(GEOMETRY, seed)
    return CachedProfile(KEY, made.version, made, made.labels, 0.0)


def test_a_version_that_is_found_stale_leaves_and_a_newer_one_in_its_place_stays(profile: Any) -> None:
    cache = ProfileCache(1 << 20, Metrics())
    first, newer = cached(profile, 1), cached(profile, 2)
    for each in (first, newer):
        cache.put(each)
    cache.invalidate(first)
    assert cache.get(KEY) is newer
    cache.invalidate(newer)
    assert cache.get(KEY) is None


def test_long_labels_take_room_like_anything_else(profile: Any) -> None:
    cache, made = ProfileCache(1 << 20, Metrics()), profile(GEOMETRY, 1, labels=400)
    narrow = [f"{number}" + "a" * 1000 for number in range(200)]
    wide = [f"{number}\U0001f600" + "b" * 250 for number in range(200)]
    long = replace(made, labels=(*narrow, *wide))
    for number in range(10):
        cache.put(CachedProfile(ProfileKey("t", f"p{number}"), long.version, long, long.labels, 0.0))
    there = [cache.get(ProfileKey("t", f"p{number}")) is not None for number in range(10)]
    assert there == [False] * 8 + [True] * 2
