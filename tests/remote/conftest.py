"""Two ends of a connection in one event loop: asyncio's, and uvloop's, on which servers run."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvloop

from xpeft_server.remote.peer import Method, Peer


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Ends:
    """Tests call from `here`, and put what `there` can be asked for into ``methods``.

    ``lost``: the ends that have heard of the connection's end, in that order.
    """

    def __init__(self, until: Any) -> None:
        self.methods: dict[str, Method] = {}
        self.methods_here: dict[str, Method] = {}
        self.lost: list[str] = []
        self._until = until
        self.here = Peer(self.methods_here, on_lost=lambda: self.lost.append("here"))
        self.there = Peer(self.methods, on_lost=lambda: self.lost.append("there"))
        self.transports: list[asyncio.Transport] = []

    async def connect(self) -> None:
        here, there = socket.socketpair()
        loop = asyncio.get_running_loop()
        self.transports = [
            (await loop.connect_accepted_socket(lambda: self.here, here))[0],
            (await loop.connect_accepted_socket(lambda: self.there, there))[0],
        ]

    def cut(self) -> None:
        """The process at the other end dies."""
        self.transports[1].abort()

    async def close(self) -> None:
        self.here.close()
        self.there.close()
        await self._until(lambda: len(self.lost) == len(self.transports))

    def unfinished(self) -> list[Any]:
        """What either end still remembers of calls."""
        return [
            each for peer in (self.here, self.there) for each in (*peer._calls, *peer._streams, *peer._tasks.values())
        ]


@pytest.fixture
async def apart(until: Any) -> AsyncIterator[Ends]:
    """Not yet connected. Whatever the test does, nothing may be left of its calls."""
    ends = Ends(until)
    yield ends
    await ends.close()
    await until(lambda: not ends.unfinished())


@pytest.fixture
async def ends(apart: Ends) -> Ends:
    await apart.connect()
    return apart
