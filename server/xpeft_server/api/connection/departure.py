"""A client that leaves while it waits cancels its request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from starlette.types import Receive, Scope

from ..errors import ClientGone

Answer = TypeVar("Answer")

# In the scope of a request whose connection reports its end; without it a task has to watch for that.
DEPARTURE: Final = "xpeft.departure"


class Departure:
    """A client's departure, reported by its connection to the task that answers it.

    Attributes:
        then: called when the client leaves.
    """

    __slots__ = ("is_told", "then")

    def __init__(self) -> None:
        self.is_told = False
        self.then: Callable[[], object] | None = None

    def tell(self) -> None:
        self.is_told = True
        if self.then is not None:
            self.then()


async def unless_client_leaves(scope: Scope, receive: Receive, work: Awaitable[Answer]) -> Answer:
    """Await ``work``; cancel it when the client closes its connection. The body must have been read.

    Raises: ClientGone, and whatever ``work`` raises.
    """
    worker = asyncio.current_task()
    if worker is None:
        raise RuntimeError("a request is answered inside a task")
    departure: Departure | None = scope.get(DEPARTURE)
    watcher = None
    if departure is None:
        departure = Departure()
        watcher = asyncio.get_running_loop().create_task(_watch(receive, departure))
    departure.then = worker.cancel
    if departure.is_told:
        worker.cancel()
    try:
        return await work
    except asyncio.CancelledError:
        if departure.is_told and not worker.uncancel():
            raise ClientGone from None
        raise
    finally:
        departure.then = None
        if watcher is not None:
            watcher.cancel()


async def _watch(receive: Receive, departure: Departure) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    departure.tell()
