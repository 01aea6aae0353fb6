"""Whether the profile store answers, found out in the background and by every question that fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from xpeft_profiles import ProfileStore, StoreUnavailable

from .metrics import Metrics

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two pings; a store that is back is noticed within one of them."""


NOT_ASKED = "not asked yet"


class StoreWatch:
    """Opens the store, again and again until it works, and pings it from then on."""

    def __init__(self, store: ProfileStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._opened = False
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = NOT_ASKED

    @property
    def up(self) -> bool:
        return self.problem is None

    async def start(self) -> None:
        """The first try is awaited; whatever comes of it, the watch goes on."""
        await self._try()
        self._task = asyncio.create_task(self._watch(), name="store-watch")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def failed(self, error: StoreUnavailable) -> None:
        """A question was not answered."""
        if self.up or self.problem == NOT_ASKED:
            logger.warning("the profile store does not answer: %s", error.message)
        self.problem = error.message
        self._metrics.store_up.set(0)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self._try()

    async def _try(self) -> None:
        try:
            if not self._opened:
                await self._store.open()
                self._opened = True
            await self._store.ping()
        except StoreUnavailable as error:
            self.failed(error)
            return
        if not self.up:
            logger.info("the profile store answers")
        self.problem = None
        self._metrics.store_up.set(1)
