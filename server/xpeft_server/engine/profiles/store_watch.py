"""Whether the profile store answers: pings in the background, and every query that fails, tell."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from xpeft_profiles import ProfileStore, StoreUnavailable

from ..metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

INTERVAL = 1.0
"""Seconds between two pings; a store that is back is noticed within that time."""

SOON = 0.05
"""Seconds from a failed query to the first ping, doubled up to INTERVAL: often just one connection broke."""

PATIENCE = 3.0
"""Seconds in which a query must be answered."""

NOT_ASKED = "not asked yet"


class StoreWatch:
    """Tries to open the store until it works, then keeps pinging it.

    Args: on_away, on_back: called when an outage begins and when it is over.
    """

    def __init__(
        self,
        store: ProfileStore,
        metrics: Metrics,
        *,
        on_away: Callable[[], None] = lambda: None,
        on_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._on_away = on_away
        self._on_back = on_back
        self._opened = False
        self._doubted = asyncio.Event()  # set: ping at once
        self._answered_at = -math.inf
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = NOT_ASKED

    @property
    def up(self) -> bool:
        return self.problem is None

    async def start(self) -> None:
        """Wait for the first try; whatever its result, watching goes on."""
        await self._try()
        self._task = asyncio.create_task(self._watch(), name="store-watch")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """The store's answer; fails at once while the store is known to be down.

        Raises: StoreUnavailable. The store then counts as down until it answers a ping, unless it has answered
            something else since this query began: then one connection broke, or the query asked for too much.
        """
        if self.problem is not None:
            raise StoreUnavailable(self.problem)
        began = time.monotonic()
        try:
            answer = await _in_time(question)
        except StoreUnavailable as error:
            if self._answered_at <= began:
                self._failed(error)
            self._doubted.set()
            raise
        self._answered_at = time.monotonic()
        return answer

    async def _watch(self) -> None:
        pause = SOON
        while True:
            if self.up:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL):
                        await self._doubted.wait()
            if self.up:
                pause = SOON
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, INTERVAL)
            await self._try()

    async def _try(self) -> None:
        try:
            if not self._opened:
                await self._store.open()
                self._opened = True
            await _in_time(self._store.ping)
        except StoreUnavailable as error:
            self._failed(error)
            return
        if not self.up:
            logger.info("the profile store answers")
            if self.problem != NOT_ASKED:
                self._on_back()
        self.problem = None
        self._answered_at = time.monotonic()
        self._doubted.clear()
        self._metrics.store_up.set(1)

    def _failed(self, error: StoreUnavailable) -> None:
        if self.up or self.problem == NOT_ASKED:
            logger.warning("the profile store does not answer: %s", error.message)
            self._on_away()
        self.problem = error.message
        self._metrics.store_up.set(0)


async def _in_time(question: Callable[[], Awaitable[T]]) -> T:
    """Raises: StoreUnavailable, whatever went wrong."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await question()
    except StoreUnavailable:
        raise
    except TimeoutError as error:
        raise StoreUnavailable(f"no answer within {PATIENCE:g} s") from error
    except Exception as error:
        logger.exception("the profile store failed in a way of its own")
        raise StoreUnavailable(f"the profile store failed: {error!r}") from error
