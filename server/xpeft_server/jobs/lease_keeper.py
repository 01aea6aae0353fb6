"""Saves the progress of this process's jobs every few seconds and renews their leases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from xpeft_profiles import JobRecord, JobStore, StoreUnavailable

from .job import Job
from .records import LEASE, Records, interrupted

logger = logging.getLogger(__name__)

_INTERVAL: Final = 2.0  # seconds between two renewals: a lease outlives four failed ones


class LeaseKeeper:
    """Saves records and renews leases; a job that was ended elsewhere, or is gone, is stopped here.

    A job that is finished and saved leaves the process's own jobs.

    Args: ping: checks that the store answers; a server without jobs has to know that, to judge the jobs of others.
    """

    def __init__(self, store: JobStore, records: Records, *, ping: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._ping = ping
        self._records = records
        self._looked_for_orphans = False
        self._is_down = False

    async def run(self) -> None:
        """Run for ever. While the store does not answer, work goes on; it is saved once the store is back."""
        while True:
            await asyncio.sleep(_INTERVAL)
            await self.try_to_renew()

    async def try_to_renew(self) -> None:
        """One round. Failures are logged, an outage once when it begins and once when it is over."""
        try:
            await self._renew()
        except StoreUnavailable as error:
            if not self._is_down:
                logger.warning("the tuning jobs cannot be saved: %s", error.message)
                self._records.store_is_away()
            self._is_down = True
        except Exception:
            logger.exception("the tuning jobs cannot be saved")
        else:
            if self._is_down:
                logger.info("the tuning jobs are saved again")
                self._records.store_is_back()
            self._is_down = False

    async def _renew(self) -> None:
        await self._ping()
        jobs = list(self._records.own.values())
        unchanged = [job for job in jobs if job.record is job.saved]
        held = await self._store.renew([job.key for job in unchanged], lease=LEASE)
        lost = [job for job, is_held in zip(unchanged, held, strict=True) if not is_held]
        for job in [*lost, *(job for job in jobs if job.record is not job.saved)]:
            await self.save(job)
        # Last, so that others' orphans, however many, cannot cost this process its own leases.
        if not self._looked_for_orphans:
            count = await self._records.end_orphans()
            self._looked_for_orphans = True
            if count:
                logger.warning("%d tuning jobs were interrupted when their server stopped", count)

    async def save(self, job: Job) -> None:
        """Write the job's record, unless the store has its last one. Raises: StoreUnavailable."""
        if job.record is not job.saved or not job.finished:
            await self._write(job, job.record)
        if job.finished and job.record is job.saved:
            self._records.own.pop(job.key, None)

    async def _write(self, job: Job, record: JobRecord) -> None:
        if await self._store.replace(record, lease=LEASE):
            job.saved = record
            return
        job.become(await self._records.stored(job.key) or interrupted(record))
        job.saved = job.record
