"""Several answers of one request, computed at the same time. If one fails, all are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

Item = TypeVar("Item")


async def all_of(works: Iterable[Coroutine[Any, Any, Item]]) -> list[Item]:
    """Their results, in their order.

    Raises: what the first to fail raised, when all others have been cancelled.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def interleaved(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """The items of all sources as they come, with the index of the source; closing this closes all sources.

    Raises: what the first to fail raised.
    """
    news: asyncio.Queue[tuple[int, Item] | asyncio.Task[None]] = asyncio.Queue()

    async def listen(index: int, source: AsyncGenerator[Item, None]) -> None:
        async with aclosing(source):
            async for item in source:
                news.put_nowait((index, item))

    tasks = [asyncio.ensure_future(listen(index, source)) for index, source in enumerate(sources)]
    for task in tasks:
        task.add_done_callback(news.put_nowait)
    left = len(tasks)
    try:
        while left:
            told = await news.get()
            if isinstance(told, asyncio.Task):
                told.result()
                left -= 1
            else:
                yield told
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
