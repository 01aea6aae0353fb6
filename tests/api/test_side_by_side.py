"""Several works of one request: together they end, well or badly."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from xpeft_server.api.side_by_side import all_of, interleaved


class Works:
    """Works and sources that wait to be told, and say what became of them."""

    def __init__(self):
        self.gates = {name: asyncio.Event() for name in "abc"}
        self.begun = []
        self.cancelled = []

    async def work(self, name, failure=None):
        self.begun.append(name)
        try:
            await self.gates[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if failure is not None:
            raise failure
        return name

    async def source(self, name, failure=None):
        yield f"{name}1"
        yield await self.work(name, failure)

    async def all_begun(self):
        async with asyncio.timeout(10):
            while len(self.begun) < 3:
                await asyncio.sleep(0)


@pytest.fixture
def works():
    return Works()


async def test_results_stand_in_the_order_of_the_works(works):
    together = asyncio.create_task(all_of([works.work(name) for name in "abc"]))
    await works.all_begun()
    for name in "cab":
        works.gates[name].set()
        await asyncio.sleep(0)
    assert await together == ["a", "b", "c"]


async def test_the_first_failure_is_raised_when_the_others_are_cancelled(works):
    together = asyncio.create_task(all_of([works.work("a"), works.work("b", ValueError("b")), works.work("c")]))
    await works.all_begun()
    works.gates["b"].set()
    with pytest.raises(ValueError, match="b"):
        await together
    assert works.cancelled == ["a", "c"]


async def test_cancelling_the_whole_cancels_the_parts(works):
    together = asyncio.create_task(all_of([works.work(name) for name in "abc"]))
    await works.all_begun()
    together.cancel()
    with pytest.raises(asyncio.CancelledError):
        await together
    assert works.cancelled == ["a", "b", "c"]


async def test_items_come_as_they_come_with_their_index(works):
    together = interleaved([works.source(name) for name in "abc"])
    assert [await anext(together) for _ in range(3)] == [(0, "a1"), (1, "b1"), (2, "c1")]
    for name in "cab":
        works.gates[name].set()
        assert await anext(together) == ("abc".index(name), name)
    assert [item async for item in together] == []


async def test_a_source_that_fails_closes_the_others(works):
    together = interleaved([works.source("a"), works.source("b", ValueError("b")), works.source("c")])
    for _ in range(3):
        await anext(together)
    works.gates["b"].set()
    with pytest.raises(ValueError, match="b"):
        await anext(together)
    assert works.cancelled == ["a", "c"]


async def test_closing_closes_every_source(works):
    async with aclosing(interleaved([works.source(name) for name in "abc"])) as together:
        await anext(together)
        await works.all_begun()
    assert works.cancelled == ["a", "b", "c"]


async def test_an_item_that_came_before_a_failure_is_given_before_it(works):
    for gate in works.gates.values():
        gate.set()
    together = interleaved([works.source("a"), works.source("b", ValueError("b"))])
    assert [await anext(together) for _ in range(3)] == [(0, "a1"), (0, "a"), (1, "b1")]
    with pytest.raises(ValueError, match="b"):
        await anext(together)
