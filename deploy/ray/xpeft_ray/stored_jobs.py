"""The tuning jobs of other servers on the same store, where nothing is tuned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from xpeft_profiles import JobKey, JobRecord, JobStore, StoreUnavailable
from xpeft_server.jobs.errors import JobNotFound, TuningOff
from xpeft_server.jobs.records import Records
from xpeft_server.jobs.requests import TuningRequest

_LOOK_SECONDS: Final = 1.0


class StoredJobs:
    """A `TunerPort` that shows and cancels jobs and takes none.

    A tuner needs part of one device's time and a process beside it; replicas come and go, and a job would end with the
    replica that it began on.

    Attributes: records: must be told of the store's outages.
    """

    def __init__(self, store: JobStore) -> None:
        self.records = Records(store)

    async def submit(self, request: TuningRequest) -> JobRecord:
        """Raises: TuningOff."""
        raise TuningOff(
            f"on Ray Serve no profiles are tuned, and {request.profile.name!r} was not: "
            "use xpeft tune, or send the job to an xpeft serve on the same store"
        )

    async def get(self, key: JobKey) -> JobRecord:
        """Raises: JobNotFound, StoreUnavailable."""
        return await self.records.get(key)

    async def follow(self, key: JobKey) -> AsyncGenerator[JobRecord, None]:
        """The record as it is, and again after changes, to its end. Raises: as `get`, before the first one."""
        seen = await self.get(key)
        yield seen
        while seen.finished is None:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                record = await self.records.get(key)
            except JobNotFound:
                return
            except StoreUnavailable:
                continue
            if record != seen:
                seen = record
                yield seen

    async def cancel(self, key: JobKey) -> JobRecord:
        """Raises: JobNotFound, JobFinished, StoreUnavailable."""
        return await self.records.cancel(key)

    async def list(self, tenant: str, *, limit: int, cursor: str | None) -> tuple[list[JobRecord], str | None]:
        """A page, newest first, and the cursor of the next. Raises: CursorInvalid, StoreUnavailable."""
        return await self.records.page(tenant, limit=limit, cursor=cursor)
