"""Work for a client that leaves: with a connection that tells of it, and with one that has to be asked."""

from __future__ import annotations

import asyncio

import pytest

from xpeft_server.api.connection.departure import DEPARTURE, Departure, unless_client_leaves
from xpeft_server.api.errors import ClientGone


class Client:
    """``scope``, ``receive`` and how the client leaves."""

    def __init__(self, *, tells: bool) -> None:
        self.scope = {DEPARTURE: Departure()} if tells else {}
        self._gone = asyncio.Event()

    async def receive(self):
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def leave(self):
        self._gone.set()
        if DEPARTURE in self.scope:
            self.scope[DEPARTURE].tell()


@pytest.fixture(params=[True, False], ids=["told", "asked"])
async def client(request):
    return Client(tells=request.param)


class Work:
    """Goes on until it is withdrawn."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.withdrawn = False

    async def go_on(self):
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.withdrawn = True
            raise


async def test_work_is_withdrawn_when_its_client_leaves(client):
    work = Work()
    answering = asyncio.create_task(unless_client_leaves(client.scope, client.receive, work.go_on()))
    await work.begun.wait()
    client.leave()
    with pytest.raises(ClientGone):
        await answering
    assert work.withdrawn


async def test_work_for_a_client_that_has_left_already_is_withdrawn(client):
    work = Work()
    client.leave()
    with pytest.raises(ClientGone):
        await unless_client_leaves(client.scope, client.receive, work.go_on())
    assert work.withdrawn


async def test_who_is_cancelled_while_the_client_waits_is_cancelled(client):
    work = Work()
    answering = asyncio.create_task(unless_client_leaves(client.scope, client.receive, work.go_on()))
    await work.begun.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert work.withdrawn


async def test_a_client_that_leaves_after_its_answer_stops_nobody(client):
    async def answer():
        return "answer"

    assert await unless_client_leaves(client.scope, client.receive, answer()) == "answer"
    client.leave()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
