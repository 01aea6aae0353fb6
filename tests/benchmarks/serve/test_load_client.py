"""The client against a server of the test's own, which speaks HTTP by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from xpeft_benchmarks.processes.connection import ExchangeFailed
from xpeft_benchmarks.processes.server_client import http_request
from xpeft_benchmarks.serve import load_client
from xpeft_benchmarks.serve.load_client import Drive, drive

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Queue-Time: 0.25\r\nx-inference-time: 0.5\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"


class Served:
    """What the server has seen."""

    def __init__(self) -> None:
        self.port = 0
        self.bodies: list[bytes] = []
        self.connections = 0
        self.most_at_once = 0
        self.at_once = 0


@asynccontextmanager
async def server(reply: Callable[[int], bytes]) -> AsyncIterator[Served]:
    """``reply``: number of the request → bytes; empty ones close the connection."""
    served = Served()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                served.bodies.append(await reader.readexactly(length))
                number = len(served.bodies) - 1
                served.at_once += 1
                served.most_at_once = max(served.most_at_once, served.at_once)
                await asyncio.sleep(0)
                served.at_once -= 1
                answer = reply(number)
                if not answer:
                    return
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    served.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield served


def requests(port: int, count: int) -> list[bytes]:
    made = (http_request("/x", {"n": number}, host="h", port=port, key="k") for number in range(count))
    return [request.encode() for request in made]


async def test_every_request_is_sent_and_every_answer_counted() -> None:
    async with server(lambda _: OK) as served:
        outcome = await drive("127.0.0.1", served.port, requests(served.port, 3), Drive(2, 60.0, 10))
    assert outcome["answered"] == len(outcome["latencies"]) == 10
    assert sorted(served.bodies) == sorted([b'{"n": 0}'] * 4 + [b'{"n": 1}'] * 3 + [b'{"n": 2}'] * 3)
    assert served.connections == 2
    assert outcome["mean_queue"] == pytest.approx(0.25)
    assert outcome["mean_inference"] == pytest.approx(0.5)
    assert outcome["refused"] == {}


async def test_no_more_requests_are_in_flight_than_asked_for() -> None:
    async with server(lambda _: OK) as served:
        await drive("127.0.0.1", served.port, requests(served.port, 1), Drive(3, 60.0, 60))
    assert 1 <= served.most_at_once <= 3


async def test_a_stretch_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def reply(_: int) -> bytes:
        nonlocal now
        now += 0.25
        return OK

    monkeypatch.setattr(load_client, "time", SimpleNamespace(perf_counter=lambda: now, process_time=lambda: 0.0))
    async with server(reply) as served:
        outcome = await drive("127.0.0.1", served.port, requests(served.port, 1), Drive(2, 1.0))
    assert outcome["answered"] in (4, 5)
    assert outcome["seconds"] == outcome["answered"] / 4


async def test_an_answer_in_chunks_is_understood() -> None:
    async with server(lambda _: CHUNKED) as served:
        outcome = await drive("127.0.0.1", served.port, requests(served.port, 1), Drive(1, 60.0, 3))
    assert outcome["answered"] == 3


async def test_refusals_are_counted_by_status_and_the_first_is_kept() -> None:
    async with server(lambda number: BUSY if number % 2 else OK) as served:
        outcome = await drive("127.0.0.1", served.port, requests(served.port, 1), Drive(1, 60.0, 6))
    assert outcome["refused"] == {"429": 3}
    assert outcome["first_refusal"] == "busy"
    assert outcome["answered"] == 3


async def test_a_server_that_closes_the_connection_is_a_failure() -> None:
    async with server(lambda number: b"" if number == 2 else OK) as served:
        with pytest.raises(ExchangeFailed, match="closed the connection"):
            await drive("127.0.0.1", served.port, requests(served.port, 1), Drive(1, 60.0, 5))


async def test_a_server_that_does_not_speak_http_is_a_failure() -> None:
    async with server(lambda _: b"SSH-2.0-OpenSSH\r\n\r\n") as served:
        with pytest.raises(ExchangeFailed, match="does not answer in HTTP"):
            await drive("127.0.0.1", served.port, requests(served.port, 1), Drive(1, 60.0, 1))
