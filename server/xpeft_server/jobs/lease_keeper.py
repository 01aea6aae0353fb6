"""Tells the store, every few seconds, how far the jobs of this process are and that somebody still has them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from xpeft_profiles import JobRecord, JobStore, StoreUnavailable

from .job import Job
from .records import LEASE, Records, interrupted

logger = logging.getLogger(__name__)

_INTERVAL: Final = 2.0  # seconds between two renewals: a lease outlives four that fail


class LeaseKeeper:
    """Saves records and renews leases; a job that was ended elsewhere, or is gone, is stopped here.

    A job that is finished and saved is no longer among the process's own.

    Args: ping: asks the store whether it answers, which a server without jobs has to know of those of others.
    """

    def __init__(self, store: JobStore, records: Records, *, ping: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._ping = ping
        self._records = records
        self._looked_for_orphans = False
        self._is_down = False

    async def run(self) -> None:
        """For ever. While the store does not answer, work goes on: it is told when it is back."""
        while True:
            await asyncio.sleep(_INTERVAL)
            await self.try_to_renew()

    async def try_to_renew(self) -> None:
        """One round; what does not work is logged, an outage when it begins and when it is over."""
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
        # After its own: whatever others have left behind must not cost this process its leases.
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
