"""A client that goes away while it waits takes its request with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.types import Receive

from .errors import ClientGone

Answer = TypeVar("Answer")


async def unless_client_leaves(receive: Receive, work: Awaitable[Answer]) -> Answer:
    """Await ``work``; cancel it when the client closes its connection. The body must have been read.

    Raises: ClientGone, and whatever ``work`` raises.
    """
    worker = asyncio.current_task()
    if worker is None:
        raise RuntimeError("a request is answered inside a task")
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        worker.cancel()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if left and not worker.uncancel():
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()
