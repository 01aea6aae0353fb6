"""What goes out in one write, and when."""

from __future__ import annotations

import asyncio

import pytest

from xpeft_server.api.connection.joined_writes import JoinedWrites


class Transport(asyncio.Transport):
    """Notes what it is told to do, each write whole."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []
        self.closing = False

    def write(self, data):
        self.done.append(bytes(data))

    def writelines(self, parts):
        self.done.append(b"".join(parts))

    def close(self):
        self.closing = True
        self.done.append("closed")

    def abort(self):
        self.closing = True
        self.done.append("aborted")

    def is_closing(self):
        return self.closing


@pytest.fixture
def transport():
    return Transport()


@pytest.fixture
async def joined(transport):
    return JoinedWrites(transport, asyncio.get_running_loop())


async def test_a_head_and_its_body_are_one_write(joined, transport):
    joined.write(b"head ")
    joined.write(b"body")
    assert transport.done == [b"head body"]
    await asyncio.sleep(0)
    assert transport.done == [b"head body"]


async def test_what_nothing_follows_goes_out_with_the_turn_of_the_loop(joined, transport):
    joined.write(b"head")
    await asyncio.sleep(0)
    assert transport.done == [b"head"]


async def test_no_more_than_one_part_is_held_back(joined, transport):
    parts = [b"%d" % number for number in range(9)]
    for written, part in enumerate(parts):
        joined.write(part)
        assert b"".join(transport.done) in (b"".join(parts[: written + 1]), b"".join(parts[:written]))
    await asyncio.sleep(0)
    assert b"".join(transport.done) == b"".join(parts)


async def test_what_was_written_goes_out_before_the_connection_is_closed(joined, transport):
    joined.write(b"last words")
    joined.close()
    await asyncio.sleep(0)
    assert transport.done == [b"last words", "closed"]


async def test_nothing_is_written_to_a_connection_that_was_aborted_or_lost(joined, transport):
    joined.write(b"lost")
    transport.closing = True
    await asyncio.sleep(0)
    assert transport.done == []
    transport.closing = False
    joined.write(b"thrown away")
    joined.abort()
    await asyncio.sleep(0)
    assert transport.done == ["aborted"]
    assert joined.is_closing()
