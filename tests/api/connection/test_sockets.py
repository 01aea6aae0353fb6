"""What only a real server and a raw socket show: clients that leave, bodies that do not end."""

from __future__ import annotations

import asyncio

import pytest

BODY = b'{"profile":"p","input":"a"}'
HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def connect(port):
    return await asyncio.open_connection("127.0.0.1", port)


def request(body=BODY):
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def test_a_client_that_leaves_while_it_waits_withdraws_its_request(port, engine, metric, until):
    engine.hold = asyncio.Event()
    _, writer = await connect(port)
    writer.write(request())
    async with asyncio.timeout(10):
        await engine.waiting.wait()
        writer.close()
        await engine.withdrawn.wait()
    await until(lambda: metric('xpeft_requests_total{outcome="cancelled",route="/v1/classify"}') == 1)


@pytest.mark.parametrize("settings", [{"max_body_bytes": 1 << 20}], indirect=True)
async def test_a_client_that_leaves_is_seen_however_long_its_body_was(port, engine, metric, until):
    engine.hold = asyncio.Event()
    _, writer = await connect(port)
    writer.write(request(BODY + b" " * 300_000))
    async with asyncio.timeout(10):
        await engine.waiting.wait()
        writer.close()
        await engine.withdrawn.wait()
    await until(lambda: metric('xpeft_requests_total{outcome="cancelled",route="/v1/classify"}') == 1)


async def test_a_client_that_leaves_withdraws_the_first_of_its_requests_in_a_row(port, engine, metric, until):
    engine.hold = asyncio.Event()
    _, writer = await connect(port)
    writer.write(request() + request())
    async with asyncio.timeout(10):
        await engine.waiting.wait()
        writer.close()
        await engine.withdrawn.wait()
    await until(lambda: metric("xpeft_connections") == 0)
    assert metric('xpeft_requests_total{outcome="cancelled",route="/v1/classify"}') == 1
    assert len(engine.seen) == 1


async def test_a_neighbour_of_a_client_that_leaves_is_answered(port, engine, until):
    engine.hold = asyncio.Event()
    reader, _ = neighbour = await connect(port)
    neighbour[1].write(request())
    _, writer = await connect(port)
    writer.write(request())
    async with asyncio.timeout(10):
        await until(lambda: len(engine.seen) == 2)
        writer.transport.abort()
        await engine.withdrawn.wait()
        engine.hold.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    neighbour[1].close()


async def test_a_client_that_leaves_within_its_body_is_counted_as_cancelled(port, engine, metric, caplog, until):
    _, writer = await connect(port)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\n{")
    await writer.drain()
    reader, other = await connect(port)
    other.write(request())
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    other.close()
    await until(lambda: metric('xpeft_requests_total{outcome="cancelled",route="/v1/classify"}') == 1)
    assert len(engine.seen) == 1
    assert "Traceback" not in caplog.text


async def test_an_upload_that_its_client_gives_up_has_not_failed(port, metric, until):
    _, writer = await connect(port)
    writer.write(b"PUT /v1/profiles/p HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n")
    writer.write(b"Content-Length: 1000\r\n\r\nabc")
    await writer.drain()
    writer.close()
    await until(lambda: metric('xpeft_requests_total{outcome="cancelled",route="/v1/profiles/{name}"}') == 1)
    assert metric('xpeft_profile_uploads_total{outcome="failed"}') == 0


async def test_a_client_that_sends_all_of_a_long_body_reads_why_it_is_refused(port):
    reader, writer = await connect(port)
    body = b"a" * (8 << 20)
    async with asyncio.timeout(10):
        writer.write(request(body))
        await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        assert b"body_too_large" in await reader.readuntil(b"}}")
        writer.write(request())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_body_without_an_end_ends_the_connection(port, metric):
    _, writer = await connect(port)
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"

    async def send_for_ever():
        while True:
            writer.write(chunk)
            await writer.drain()

    async with asyncio.timeout(10):
        with pytest.raises(ConnectionError):
            await send_for_ever()
    assert metric('xpeft_requests_total{outcome="client_error",route="/v1/classify"}') == 1
    writer.close()


async def test_a_connection_is_kept_for_the_next_request(port):
    reader, writer = await connect(port)
    async with asyncio.timeout(10):
        for _ in range(3):
            writer.write(request())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
    writer.close()


async def test_requests_in_a_row_are_answered_in_their_order(port):
    reader, writer = await connect(port)
    writer.write(request() + request(b"[]") + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answers = await reader.read()
    positions = [answers.index(status) for status in (b" 200 OK", b" 422 ", b'{"status":"ok"}')]
    assert positions == sorted(positions)
    writer.close()


async def test_a_head_request_has_no_body(port):
    reader, writer = await connect(port)
    writer.write(b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    assert b"content-length: 15" in answer
    assert answer.endswith(b"\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(
    "path", [b"/v1/profiles/..%2f..%2fetc%2fpasswd", b"/v1/profiles/../../etc/passwd", b"/v1/profiles/%00", b"/%ff"]
)
async def test_a_hostile_path_is_refused_in_the_envelope(port, path):
    reader, writer = await connect(port)
    writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
    async with asyncio.timeout(10):
        answer = await reader.read()
    assert answer.startswith((b"HTTP/1.1 422", b"HTTP/1.1 404"))
    assert b'{"error":{' in answer
    writer.close()


async def test_a_drain_waits_until_what_is_inside_is_answered(port, engine, drain):
    engine.hold = asyncio.Event()
    reader, writer = await connect(port)
    writer.write(request())
    async with asyncio.timeout(10):
        await engine.waiting.wait()
        drain.begin()
        empty = asyncio.create_task(drain.wait_until_empty())
        late_reader, late = await connect(port)
        late.write(request())
        assert (await late_reader.readline()).startswith(b"HTTP/1.1 503")
        assert not empty.done()
        engine.hold.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await empty
    for each in (writer, late):
        each.close()
