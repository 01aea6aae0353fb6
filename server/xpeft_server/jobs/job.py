"""A job that this process owns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xpeft_profiles import JobKey, JobRecord

from .requests import TuningRequest


class Job:
    """Its record, which others may watch, and what is needed to do it.

    ``saved`` is the record that the store has; ``task`` does the work, ``deciding`` is held by whoever decides how it
    ends. Used from one event loop.

    Args:
        on_end: called once, when the record has become a finished one.
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
        """Take a new state and wake who waits for one. What is finished stays as it is."""
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
        """The first record that is another than ``seen``."""
        while self.record is seen:
            await self._changed.wait()
        return self.record
