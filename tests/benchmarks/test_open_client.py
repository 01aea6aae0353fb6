"""Requests that come when they are due, against a server of the test's own."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from xpeft_benchmarks.open_client import OpenLoop, Phase, arrivals
from xpeft_benchmarks.server_client import http_request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"


def test_arrivals_are_in_order_and_as_many_as_the_rates_say() -> None:
    found = arrivals([Phase([50.0, 5.0, 0.0], 100.0)], seed=3)
    assert found == sorted(found)
    counts = np.bincount([stream for _, stream in found], minlength=3)
    assert counts.tolist() == pytest.approx([5000, 500, 0], rel=0.15)
    gaps = np.diff([moment for moment, stream in found if stream == 0])
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)
    assert arrivals([Phase([50.0], 1.0)], seed=3) != arrivals([Phase([50.0], 1.0)], seed=4)


def test_a_phase_begins_when_the_one_before_it_is_over() -> None:
    found = [moment for moment, _ in arrivals([Phase([0.0], 2.0), Phase([100.0], 1.0), Phase([0.0], 1.0)], seed=3)]
    assert 2.0 <= min(found) < 2.2
    assert 2.8 < max(found) <= 3.0


async def test_requests_are_sent_when_due_though_earlier_ones_were_not_answered() -> None:
    seen: list[bytes] = []
    late = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                seen.append(body)
                if b"slow" in body:
                    await late.wait()
                writer.write(BUSY if b"busy" in body else OK)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    asyncio.get_running_loop().call_later(0.5, late.set)
    words = ("slow", "busy", "fine")
    streams = [[http_request("/", {"word": word}, host="h", port=port, key=None).encode()] for word in words]
    async with server:
        began = time.monotonic()
        slow, busy, fine = await OpenLoop("127.0.0.1", port, streams).run([Phase([100.0, 100.0, 100.0], 0.3)], seed=0)
    assert 0.5 <= time.monotonic() - began < 5
    assert len(slow.statuses) > 10
    assert set(slow.statuses) == set(fine.statuses) == {200}
    assert set(busy.statuses) == {429}
    assert min(slow.latencies) > 0.15
    assert np.median(fine.latencies) < 0.15
    assert len(seen) == sum(len(each.due) for each in (slow, busy, fine))


async def test_a_request_whose_connection_breaks_counts_as_unanswered() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    request = http_request("/", {}, host="h", port=port, key=None).encode()
    async with server:
        (stream,) = await OpenLoop("127.0.0.1", port, [[request]]).run([Phase([50.0], 0.3)], seed=0)
    assert stream.statuses
    assert set(stream.statuses) == {0}
