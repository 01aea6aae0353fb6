"""The way out: nothing new is let in, and what is inside can finish."""

from __future__ import annotations

import asyncio


class Drain:
    """Counts the requests inside; once it has begun, new ones are refused. Used from one event loop."""

    def __init__(self) -> None:
        self.begun = False
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def begin(self) -> None:
        self.begun = True

    def enter(self) -> None:
        self._inside += 1
        self._empty.clear()

    def leave(self) -> None:
        self._inside -= 1
        if not self._inside:
            self._empty.set()

    async def wait_until_empty(self) -> None:
        await self._empty.wait()
