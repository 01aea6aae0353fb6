"""The tuner interface that the API depends on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from xpeft_profiles import JobKey, JobRecord
from xpeft_server.jobs.requests import TuningRequest


class TunerPort(Protocol):
    """What ``create_app`` needs of a tuner; usable from one event loop. Every method may raise StoreUnavailable."""

    async def submit(self, request: TuningRequest) -> JobRecord:
        """Raises: TuningOff, InvalidTuning, TooManyJobs, Unavailable."""
        ...

    async def get(self, key: JobKey) -> JobRecord:
        """Raises: JobNotFound."""
        ...

    def follow(self, key: JobKey) -> AsyncGenerator[JobRecord, None]:
        """The record as it is, and again after changes; the last one is finished, unless the server stops.

        Raises: JobNotFound before the first record.
        """
        ...

    async def cancel(self, key: JobKey) -> JobRecord:
        """Raises: JobNotFound, JobFinished."""
        ...

    async def list(self, tenant: str, *, limit: int, cursor: str | None) -> tuple[list[JobRecord], str | None]:
        """A page, newest first, and the cursor of the next. Raises: CursorInvalid."""
        ...
