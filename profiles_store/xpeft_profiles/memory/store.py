"""``memory://``: profiles in this process, gone with it. For tests and demos."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence

from ..errors import TooManyProfiles
from ..jobs.store import JobStore
from ..listing import check_limit, decode_cursor, page_of
from ..names import ProfileKey, check_keys, check_name
from ..profile import Profile
from ..record.writer import encode_record
from ..store import NO_CONDITION, KeyedRecord, ListPage, Match, PutOutcome, StoredProfile
from .job_store import MemoryJobStore


class MemoryStore:
    """A dictionary with the manners of a store. ``clock`` gives seconds since 1970."""

    scheme = "memory"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.jobs: JobStore = MemoryJobStore(clock)
        self._profiles: dict[ProfileKey, StoredProfile] = {}

    async def open(self) -> None:
        pass

    async def get(self, key: ProfileKey) -> StoredProfile | None:
        return self._profiles.get(key)

    async def get_many(self, keys: Sequence[ProfileKey]) -> list[StoredProfile | None]:
        return [self._profiles.get(key) for key in keys]

    async def versions(self, keys: Sequence[ProfileKey]) -> list[str | None]:
        return [stored and stored.version for stored in map(self._profiles.get, keys)]

    async def put(
        self, key: ProfileKey, profile: Profile, *, match: Match = NO_CONDITION, most: int | None = None
    ) -> PutOutcome:
        check_name(key.tenant, param="tenant")
        check_name(key.name)
        there = self._profiles.get(key)
        version, record = profile.version, encode_record(profile)
        damaged = there is not None and there.version == version and there.record != record
        match.check(there and there.version, damaged=damaged)
        if there is None and most is not None and sum(each.tenant == key.tenant for each in self._profiles) >= most:
            raise TooManyProfiles(most)
        return self._put(KeyedRecord(key, version, record), self._clock(), replace=True)

    async def put_many(self, records: Sequence[KeyedRecord], *, replace: bool = True) -> list[PutOutcome]:
        check_keys(record.key for record in records)
        now = self._clock()
        return [self._put(record, now, replace=replace) for record in records]

    def _put(self, keyed: KeyedRecord, now: float, *, replace: bool) -> PutOutcome:
        key, version, record = keyed
        there = self._profiles.get(key)
        if there is None:
            self._profiles[key] = StoredProfile(version, record, now, now)
            return PutOutcome(version, "created", now, now)
        if there.version == version and there.record == record:
            return PutOutcome(version, "identical", there.created, there.updated)
        if not replace:
            return PutOutcome(there.version, "kept", there.created, there.updated)
        self._profiles[key] = StoredProfile(version, record, there.created, now)
        return PutOutcome(version, "replaced", there.created, now)

    async def delete(self, key: ProfileKey, *, match: Match = NO_CONDITION) -> bool:
        there = self._profiles.get(key)
        match.check(there and there.version)
        return self._profiles.pop(key, None) is not None

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None, prefix: str = "") -> ListPage:
        check_limit(limit)
        after = decode_cursor(cursor)
        there = (key.name for key in self._profiles if key.tenant == tenant)
        names = sorted(name for name in there if name > after and name.startswith(prefix))[: limit + 1]
        return page_of(((name, self._profiles[ProfileKey(tenant, name)]) for name in names), limit)

    async def tenants(self) -> AsyncIterator[str]:
        for tenant in sorted({key.tenant for key in self._profiles}):
            yield tenant

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass
