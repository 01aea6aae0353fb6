"""Requests at a rate, over aiohttp, against a server of the test's own."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
import uvloop

from xpeft_benchmarks.arrivals import arrivals_at
from xpeft_benchmarks.load import rate_client
from xpeft_benchmarks.load.exchange import Exchange
from xpeft_benchmarks.load.rate_client import RateClient, RateJobs
from xpeft_benchmarks.processes.server_client import ServerClient, ServerRefused

HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer k"}
TIMES = "X-Queue-Time: 0.25\r\nx-total-time: 0.001\r\nServer-Timing: forward;dur=7\r\n"
EVENTS = [
    b'data: {"text":"a"}\n\n',
    b'data: {"text":"b"}\n\n',
    b'data: {"text":"","finish_reason":"stop","usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n',
]


def whole(status: str = "200 OK", body: str = '{"usage":{"prompt_tokens":7}}') -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{TIMES}\r\n{body}".encode()


def stream(*events: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    return f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{TIMES}\r\n".encode() + chunks + b"0\r\n\r\n"


@asynccontextmanager
async def client_of(reply: Callable[[bytes], bytes | None], *, streams: bool = False) -> AsyncIterator[RateClient]:
    """``reply``: body → bytes; empty ones close the connection, None is never answered. Requests: 0, 1, 2."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"Authorization: Bearer k\r\n" in head
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                answer = reply(await reader.readexactly(length))
                if answer is None:
                    await asyncio.Event().wait()
                elif not answer:
                    return
                else:
                    writer.write(answer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    requests = [(json.dumps({"n": number}).encode(), HEADERS) for number in range(3)]
    client = RateClient(f"http://127.0.0.1:{port}/x", requests, streams=streams)
    async with client.connected():
        yield client
    server.close()
    for task in talks:
        task.cancel()
    await asyncio.gather(*talks)


async def test_every_request_is_sent_and_told_of() -> None:
    seen: list[bytes] = []

    def reply(body: bytes) -> bytes:
        seen.append(body)
        return whole()

    async with client_of(reply) as client:
        done = await client.at_rate(100.0, 0.2, (1,), first=1)
    assert len(done) == len(seen) == 20
    assert [seen.count(b'{"n": %d}' % number) for number in range(3)] == [6, 7, 7]
    assert {(each.status, each.tokens) for each in done} == {(200, 7)}
    for each in done:
        assert each.stages["queue"] == 0.25
        assert each.stages["forward"] == pytest.approx(0.007)
        assert each.stages["rest"] == pytest.approx(each.stages["total"] - 0.001)
    assert client.problem == ""


class Clock:
    """Time that passes only while the client sleeps; one sleep takes ``held`` seconds more than it was to."""

    def __init__(self, *, after: float = 0.0, held: float = 0.0) -> None:
        self.now = 0.0
        self._after = after
        self._held = held
        self._yield = asyncio.sleep

    def perf_counter(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await self._yield(0)  # what is due is sent first
        self.now += seconds
        if self.now > self._after:
            self.now += self._held
            self._held = 0.0


async def test_requests_are_sent_when_due_though_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real, wait = Clock(), asyncio.sleep, asyncio.wait
    seen: list[bytes] = []
    monkeypatch.setattr(rate_client, "time", clock)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    async with client_of(seen.append) as client:

        async def until_all_came(tasks: list[asyncio.Task[None]], *, timeout: float) -> object:  # noqa: ASYNC109
            async with asyncio.timeout(timeout):
                while len(seen) < len(tasks):
                    await real(0.001)
            return await wait(tasks, timeout=0.01)

        monkeypatch.setattr(asyncio, "wait", until_all_came)
        done = await client.at_rate(100.0, 0.3, (1,), first=0)
    assert len(seen) == 30
    assert clock.now == pytest.approx(rate_client._LEAD + max(arrivals_at(100.0, 0.3, (1,))))
    assert [each.late for each in done] == pytest.approx([0.0] * 30, abs=1e-9)
    assert [(each.status, each.tokens, each.stages) for each in done] == [(0, 0, {})] * 30


async def test_a_client_that_is_held_up_says_how_late_it_was_and_latency_counts_from_when_it_was_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after, held = 0.15, 0.3
    clock = Clock(after=after, held=held)
    monkeypatch.setattr(rate_client, "time", clock)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    async with client_of(lambda _: whole()) as client:
        done = await client.at_rate(200.0, 0.6, (1,), first=0)
    due = [rate_client._LEAD + moment for moment in arrivals_at(200.0, 0.6, (1,))]
    goes_on = held + next(moment for moment in due if moment > after)
    late = [max(0.0, goes_on - moment) if moment > after else 0.0 for moment in due]
    assert sum(seconds > 0 for seconds in late) > 10
    assert sorted(each.late for each in done) == pytest.approx(sorted(late), abs=1e-9)
    assert all(each.stages["total"] >= each.late for each in done)


async def test_a_refusal_has_no_times_and_the_first_is_told() -> None:
    async with client_of(lambda _: whole("429 Too Many Requests", "busy")) as client:
        done = await client.at_rate(50.0, 0.1, (1,), first=0)
    assert [each._replace(late=0.0) for each in done] == [Exchange(0.0, 429, 0, {})] * 5
    assert client.problem == "429 busy"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "ServerDisconnectedError"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "ClientResponseError"),
        (whole(body="oops"), "JSONDecodeError"),
        (whole(body="[]"), "TypeError"),
    ],
)
async def test_an_answer_that_is_none_has_no_status_and_the_reason_is_told(answer: bytes, problem: str) -> None:
    async with client_of(lambda _: answer) as client:
        done = await client.at_rate(20.0, 0.1, (1,), first=0)
    assert {each.status for each in done} == {0}
    assert client.problem.startswith(problem)


async def test_a_stream_tells_of_its_tokens() -> None:
    async with client_of(lambda _: stream(*EVENTS), streams=True) as client:
        (one,) = await client.at_rate(10.0, 0.1, (1,), first=0)
    assert (one.status, one.tokens) == (200, 3)
    assert one.stages.keys() == {"queue", "forward", "first_token", "per_token", "longest_pause", "total"}
    assert 0 < one.stages["first_token"] <= one.stages["total"]


async def test_a_stream_that_breaks_off_is_no_answer() -> None:
    async with client_of(lambda _: stream(*EVENTS[:2]), streams=True) as client:
        (one,) = await client.at_rate(10.0, 0.1, (1,), first=0)
    assert (one.status, one.stages) == (0, {})
    assert "ended before its last event" in client.problem


async def test_a_closed_loop_has_so_many_in_flight_and_ends_after_so_many_requests_or_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(rate_client, "time", clock)

    def reply(_: bytes) -> bytes:
        clock.now += 0.25
        return whole()

    async with client_of(reply) as client:
        assert len(await client.at_once(2, 60.0, 10)) == 10
        assert clock.now == 2.5
        assert len(await client.at_once(2, 1.0, None)) in (4, 5)


async def test_a_server_with_tls_is_asked_and_one_that_nobody_vouches_for_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole())
        writer.close()

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = RateClient(f"{url}/x", [(b"{}", HEADERS)], streams=False)
        async with client.connected():
            (refused,) = await client.at_once(1, 60.0, 1)
        with pytest.raises(ServerRefused, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(ServerClient(url).info, None)
        assert refused.status == 0
        assert "CERTIFICATE_VERIFY_FAILED" in client.problem
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with client.connected():
            (answered,) = await client.at_once(1, 60.0, 1)
        assert answered.status == 200
        assert await asyncio.to_thread(ServerClient(url).info, None) == {"usage": {"prompt_tokens": 7}}


def test_jobs_load_and_send_and_each_tells_of_its_own_problem() -> None:
    answers = [whole("503 Service Unavailable", "later"), whole()]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(answers.pop(0))
        writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        server = runner.run(asyncio.start_server(serve, "127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        jobs = RateJobs(runner)
        load = {"job": "load", "target": "t", "url": url, "requests": [["{}", HEADERS]], "streams": False, "tls": {}}
        assert jobs(load) == {"loaded": 1}
        once = {"job": "once", "target": "t", "concurrency": 1, "seconds": 60.0, "requests": 1}
        first, second = jobs(once), jobs(once)
        server.close()
    assert first["problem"] == "503 later"
    assert second["problem"] == ""
    assert Exchange(*second["exchanges"][0]).status == 200
    assert second["seconds"] > 0
    assert second["cpu_seconds"] > 0
