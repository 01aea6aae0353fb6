"""Jobs that wait; tenants take turns."""

from __future__ import annotations

import asyncio
from collections import deque

from .job import Job


class Turns:
    """First come, first served within a tenant; between tenants, one job each in turn. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Job]] = {}
        self._filled = asyncio.Event()
        self._served_last = ""

    def add(self, job: Job) -> None:
        self._waiting.setdefault(job.record.tenant, deque()).append(job)
        self._filled.set()

    def remove(self, job: Job) -> None:
        """Nothing happens if the job does not wait."""
        queue = self._waiting.get(job.record.tenant, deque())
        if job in queue:
            queue.remove(job)
            if not queue:
                del self._waiting[job.record.tenant]

    async def take(self) -> Job:
        """The next job, as soon as there is one."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        # The tenant served last goes behind all others, also when it came before them.
        tenant = next((each for each in self._waiting if each != self._served_last), self._served_last)
        self._served_last = tenant
        queue = self._waiting.pop(tenant)
        job = queue.popleft()
        if queue:
            self._waiting[tenant] = queue
        return job
