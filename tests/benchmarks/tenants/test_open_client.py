"""Requests that come when they are due, against a server of the test's own."""

from __future__ import annotations

import asyncio

import numpy as np

from xpeft_benchmarks.arrivals import Phase, arrivals
from xpeft_benchmarks.processes.server_client import http_request
from xpeft_benchmarks.tenants.open_client import OpenLoop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"
TINY = 1e-6  # seconds


async def test_requests_are_sent_when_due_though_earlier_ones_were_not_answered() -> None:
    phases = [Phase([100.0, 100.0, 100.0], 0.3)]
    due = [moment for moment, _ in arrivals(phases, 0)]
    seen: list[bytes] = []
    all_sent = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                seen.append(body)
                if len(seen) == len(due):
                    all_sent.set()
                if b"slow" in body:
                    await all_sent.wait()
                writer.write(BUSY if b"busy" in body else OK)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    words = ("slow", "busy", "fine")
    streams = [[http_request("/", {"word": word}, host="h", port=port, key=None).encode()] for word in words]
    loop = asyncio.get_running_loop()
    loop.call_later(20, all_sent.set)
    async with server:
        began = loop.time()
        slow, busy, fine = await OpenLoop("127.0.0.1", port, streams).run(phases, seed=0)
        seconds = loop.time() - began
    assert len(slow.statuses) > 10
    assert set(slow.statuses) == set(fine.statuses) == {200}
    assert set(busy.statuses) == {429}
    assert len(seen) == sum(len(each.due) for each in (slow, busy, fine))
    # Latencies count from when each was due.
    answered = np.add(slow.due, slow.latencies)
    assert due[-1] <= min(answered) + TINY
    assert max(answered) <= seconds + TINY
    assert np.median(np.add(fine.due, fine.latencies)) < min(answered)


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
