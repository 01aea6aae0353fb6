"""A job that this process owns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xpeft_profiles import JobKey, JobRecord

from .requests import TuningRequest


class Job:
    """A record, which others may watch, and the request that it is about. Used from one event loop.

    ``saved`` is the record in the store, ``task`` does the work; ``deciding`` is held while the job's end is decided.

    Args:
        on_end: called once, when the job has finished.
    """

    def __init__(self, record: JobRecord, request: TuningRequest, *, on_end: Callable[[Job], None]) -> None:
        self.record = self.saved = record
        self.request = request
        self.task: asyncio.Task[None] | None = None
        self.deciding = asyncio.Lock()
        self._on_end = on_end
        self._changed = asyncio.Event()

    @property
    def key(self) -> JobKey:
        return self.record.key

    @property
    def finished(self) -> bool:
        return self.record.finished is not None

    def become(self, record: JobRecord) -> None:
        """Take a new record and wake its watchers. A finished job stays as it is."""
        if self.finished:
            return
        self.record = record
        self._changed.set()
        self._changed = asyncio.Event()
        if record.finished is not None:
            self._on_end(self)

    def change(self, **fields: Any) -> None:
        self.become(replace(self.record, **fields))

    async def after(self, seen: JobRecord) -> JobRecord:
        """Wait for another record than ``seen``."""
        while self.record is seen:
            await self._changed.wait()
        return self.record
