"""The jobs of this process, and those of others as the store has them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace

from xpeft_profiles import JobKey, JobRecord, JobStore, RecordDamaged, StoredJob

from .errors import JobFinished, JobNotFound
from .failures import INTERRUPTED
from .job import Job
from .process_identity import provably_dead

logger = logging.getLogger(__name__)

LEASE = 10.0
"""Seconds without a renewal after which a job counts as interrupted."""


class Records:
    """The newest record of a job is in ``own`` if the job is this process's, and otherwise in the store.

    A job whose lease has lapsed is recorded as failed when it is read, so that everybody sees the same. While the store
    is away no lease can be renewed: once it is back, owners have the length of a lease to do so.
    """

    def __init__(self, store: JobStore, *, is_dead: Callable[[str], bool] = provably_dead) -> None:
        self._store = store
        self._is_dead = is_dead
        self._answers_since = -math.inf  # monotonic seconds
        self.own: dict[JobKey, Job] = {}

    def store_is_away(self) -> None:
        self._answers_since = math.inf

    def store_is_back(self) -> None:
        self._answers_since = time.monotonic()

    async def get(self, key: JobKey) -> JobRecord:
        """Raises: JobNotFound, StoreUnavailable."""
        if key in self.own:
            return self.own[key].record
        stored = await self._store.get(key)
        if stored is None:
            raise JobNotFound(f"there is no job {key.id[:80]!r}", param="id")
        return await self._judged(stored)

    async def page(self, tenant: str, *, limit: int, cursor: str | None) -> tuple[list[JobRecord], str | None]:
        """Newest first, and the cursor of the next page."""
        page = await self._store.list(tenant, limit=limit, cursor=cursor)
        return [await self._judged(stored) for stored in page.jobs], page.next_cursor

    async def cancel(self, key: JobKey) -> JobRecord:
        """Cancel a job of another process. Raises: JobNotFound, JobFinished, StoreUnavailable."""
        record = await self.get(key)
        if record.finished is None:
            ended = replace(record, status="cancelled", finished=time.time())
            record = await self.end(ended) or ended
        check_cancelled(record)
        return record

    async def end(self, record: JobRecord) -> JobRecord | None:
        """Write a finished record over an unfinished one. Returns: what is stored afterwards, as `stored`."""
        if await self._store.replace(record, lease=LEASE):
            return record
        return await self.stored(record.key)

    async def stored(self, key: JobKey) -> JobRecord | None:
        """The record in the store; None if the job is gone or its record cannot be read."""
        try:
            stored = await self._store.get(key)
        except RecordDamaged as error:
            logger.error("tuning job %r of tenant %r: %s", key.id, key.tenant, error.message)
            return None
        return stored and stored.record

    async def end_orphans(self) -> int:
        """Interrupt the jobs whose lease has lapsed or whose owner is dead. Returns: how many there were."""
        orphans = [each.record for each in await self._store.unfinished() if self._is_orphan(each)]
        for record in orphans:
            await self._store.replace(interrupted(record), lease=LEASE)
        return len(orphans)

    def _is_orphan(self, stored: StoredJob) -> bool:
        return stored.record.key not in self.own and (self._is_left(stored) or self._is_dead(stored.record.owner))

    async def _judged(self, stored: StoredJob) -> JobRecord:
        own = self.own.get(stored.record.key)
        if own is not None:
            return own.record
        if not self._is_left(stored):
            return stored.record
        ended = interrupted(stored.record)
        return await self.end(ended) or ended

    def _is_left(self, stored: StoredJob) -> bool:
        return stored.lapsed and time.monotonic() - self._answers_since >= LEASE


def check_cancelled(record: JobRecord) -> None:
    """Raises: JobFinished if the job ended otherwise."""
    if record.status != "cancelled":
        raise JobFinished(f"job {record.id} is over: {record.status}")


def interrupted(record: JobRecord) -> JobRecord:
    return replace(record, status="failed", finished=time.time(), error=INTERRUPTED)
