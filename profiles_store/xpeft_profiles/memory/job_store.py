"""Tuning jobs of ``memory://``: in this process, gone with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..errors import TooManyJobs
from ..jobs.record import JobKey, JobRecord
from ..jobs.store import KEPT_SECONDS, JobPage, StoredJob
from ..listing import check_limit, decode_cursor, encode_cursor
from ..names import check_name


class MemoryJobStore:
    """A dictionary with the manners of a store. ``clock`` gives seconds since 1970."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: dict[JobKey, JobRecord] = {}
        self._leases: dict[JobKey, float] = {}

    async def add(self, record: JobRecord, *, lease: float, most: int, keep: int) -> None:
        check_name(record.tenant, param="tenant")
        check_name(record.profile)
        now = self._clock()
        alive = sum(key.tenant == record.tenant and until > now for key, until in self._leases.items())
        if alive >= most:
            raise TooManyJobs(most)
        self._records[record.key] = record
        self._leases[record.key] = now + lease
        for rank, key in enumerate(self._keys_of(record.tenant)):
            if key not in self._leases and (rank >= keep or self._is_old(self._records[key])):
                del self._records[key]

    async def get(self, key: JobKey) -> StoredJob | None:
        record = self._records.get(key)
        return None if record is None or self._is_old(record) else self._stored(record)

    async def replace(self, record: JobRecord, *, lease: float) -> bool:
        if record.key not in self._leases:
            return False
        self._records[record.key] = record
        if record.finished is None:
            self._leases[record.key] = self._clock() + lease
        else:
            del self._leases[record.key]
        return True

    async def renew(self, keys: Sequence[JobKey], *, lease: float) -> list[bool]:
        until = self._clock() + lease
        self._leases.update({key: until for key in keys if key in self._leases})
        return [key in self._leases for key in keys]

    async def unfinished(self) -> list[StoredJob]:
        return [self._stored(self._records[key]) for key in self._leases]

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None) -> JobPage:
        check_limit(limit)
        before = decode_cursor(cursor)
        keys = [key for key in self._keys_of(tenant) if not before or key.id < before]
        keys = [key for key in keys if not self._is_old(self._records[key])]
        jobs = tuple(self._stored(self._records[key]) for key in keys[:limit])
        return JobPage(jobs, encode_cursor(keys[limit - 1].id) if len(keys) > limit else None)

    def _keys_of(self, tenant: str) -> Iterator[JobKey]:
        """Newest first."""
        yield from sorted((key for key in self._records if key.tenant == tenant), reverse=True)

    def _stored(self, record: JobRecord) -> StoredJob:
        until = self._leases.get(record.key)
        return StoredJob(record, until is not None and until <= self._clock())

    def _is_old(self, record: JobRecord) -> bool:
        return record.finished is not None and record.finished < self._clock() - KEPT_SECONDS
