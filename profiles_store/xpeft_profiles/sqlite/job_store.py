"""Tuning jobs of ``sqlite://``: a table beside the profiles, read and written by the same threads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ..jobs.reader import JobReader
from ..jobs.record import JobKey, JobRecord
from ..jobs.store import JobPage, StoredJob
from ..listing import check_limit, decode_cursor
from ..names import check_name
from . import jobs

T = TypeVar("T")


class InThread(Protocol):
    """Does work with a connection in the thread that uses it. Raises: StoreUnavailable."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T], /) -> T: ...


class SqliteJobStore:
    """``read``, ``walk`` (for lists) and ``write`` are the profile store's; a write runs inside a transaction.

    ``clock`` gives seconds since 1970.
    """

    def __init__(self, read: InThread, walk: InThread, write: InThread, clock: Callable[[], float]) -> None:
        self._read = read
        self._walk = walk
        self._write = write
        self._clock = clock
        self._reader = JobReader()

    async def add(self, record: JobRecord, *, lease: float, most: int, keep: int) -> None:
        check_name(record.tenant, param="tenant")
        check_name(record.profile)

        await self._write(lambda connection: jobs.add(connection, record, lease, most, keep, self._clock()))

    async def get(self, key: JobKey) -> StoredJob | None:
        return await self._read(lambda connection: jobs.get(connection, key, self._clock()))

    async def replace(self, record: JobRecord, *, lease: float) -> bool:
        return await self._write(lambda connection: jobs.replace(connection, record, lease, self._clock()))

    async def renew(self, keys: Sequence[JobKey], *, lease: float) -> list[bool]:
        return await self._write(lambda connection: jobs.renew(connection, keys, self._clock() + lease))

    async def unfinished(self) -> list[StoredJob]:
        return await self._read(lambda connection: jobs.unfinished(connection, self._reader, self._clock()))

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None) -> JobPage:
        check_limit(limit)
        before = decode_cursor(cursor)
        return await self._walk(
            lambda connection: jobs.page(connection, self._reader, tenant, before, limit, self._clock())
        )
