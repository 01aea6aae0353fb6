"""What a client may send before it is known, and how long it may take: over a real socket."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import resource
import socket

import pytest

from xpeft_server.api.connection.connections import ConnectionLimits
from xpeft_server.api.connection.http_protocol import HEAD_BYTES, HEADERS
from xpeft_server.engine.requests import Finished, Piece, Started

BODY = b'{"profile":"p","input":"a"}'
POST = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n"


HASTY = ConnectionLimits(most=100, idle_seconds=30, send_seconds=30, head_seconds=0.2)


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"body_seconds": 0.2})


@pytest.fixture
def send(port):
    """Sends bytes, reads until the server closes."""

    async def send(*parts: bytes) -> bytes:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                return await reader.read()
            except ConnectionError:
                return b""
            finally:
                writer.close()

    return send


@pytest.fixture
def sends_for_ever(port):
    """Repeats a part until the server ends the connection; how many bytes that took, and what it said."""

    async def send(start: bytes, part: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(start)
        sent = 0
        try:
            async with asyncio.timeout(20):
                while not reader.at_eof():
                    writer.write(part)
                    sent += len(part)
                    await writer.drain()
                    await asyncio.sleep(0)
        except ConnectionError:
            pass
        finally:
            writer.close()
        try:
            return sent, await reader.read()
        except ConnectionError:
            return sent, b""

    return send


async def answers(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET + CLOSE + b"\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


ENDLESS = {
    "a path": (b"GET /", b"a" * 4096),
    "a query": (b"GET /health?", b"a" * 4096),
    "a header's value": (GET + b"X: ", b"a" * 4096),
    "a header's name": (GET, b"a" * 4096),
    "headers": (GET, b"".join(b"X%d: y\r\n" % number for number in range(50))),
    "long headers": (GET, b"X: " + b"y" * 4096 + b"\r\n"),
    "a chunk's extension": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 4096),
    "a trailer's value": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 4096),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n" * 500),
    "empty lines": (b"", b"\r\n" * 2048),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_has_no_end_ends_the_connection_and_costs_no_memory(port, sends_for_ever, what):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent, answer = await sends_for_ever(*ENDLESS[what])
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    # Beside what is counted: what both sides' buffers of this machine hold.
    assert sent < 16 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert await answers(port)


async def test_a_head_within_the_limits_is_read_in_any_pieces(port, send):
    head = GET + CLOSE + b"X: " + b"a" * (HEAD_BYTES - 200) + b"\r\n\r\n"
    assert (await send(head)).startswith(b"HTTP/1.1 200")
    assert (await send(*(head[start : start + 999] for start in range(0, len(head), 999)))).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (GET + b"X: " + b"a" * HEAD_BYTES + b"\r\n\r\n", b"headers_too_large"),
        (b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\n\r\n", b"headers_too_large"),
        (GET + b"X: y\r\n" * HEADERS + b"\r\n", b"too_many_headers"),
    ],
)
async def test_a_head_beyond_the_limits_is_431_in_the_envelope(send, head, code):
    answer = await send(head)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in answer
    assert b"x-request-id: " in answer
    assert b'"code":"%s"' % code in answer


UNPARSED = {
    "rubbish": (b"rubbish\r\n\r\n", 400, "invalid_http", "client_error"),
    "many headers": (GET + b"X: y\r\n" * HEADERS + b"\r\n", 431, "too_many_headers", "client_error"),
    "gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501, "unsupported_transfer_encoding", "server_error"),
    "HTTP/2": (b"GET /health HTTP/2.0\r\n\r\n", 505, "http_version_not_supported", "server_error"),
}


@pytest.fixture
def access_lines():
    """What the access log was told, as the fields of each line."""
    found = []

    class Lines(logging.Handler):
        def emit(self, record):
            found.append({"message": record.getMessage(), **record.fields})

    handler, logger = Lines(), logging.getLogger("xpeft.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize(("request_", "status", "code", "outcome"), UNPARSED.values(), ids=UNPARSED)
async def test_what_cannot_be_read_as_a_request_is_counted(send, metric, request_, status, code, outcome):
    assert (await send(request_)).startswith(b"HTTP/1.1 %d " % status)
    assert metric(f'xpeft_requests_total{{outcome="{outcome}",route="unmatched"}}') == 1
    assert metric('xpeft_request_duration_seconds_count{route="unmatched"}') == 0


@pytest.mark.parametrize("settings", [{"access_log": True}], indirect=True)
@pytest.mark.parametrize(("request_", "status", "code", "outcome"), UNPARSED.values(), ids=UNPARSED)
async def test_what_cannot_be_read_as_a_request_has_a_line_in_the_access_log(
    send, access_lines, request_, status, code, outcome
):
    answer = await send(request_)
    (line,) = access_lines
    assert b"x-request-id: %s\r\n" % line.pop("request_id").encode() in answer
    assert line.pop("client").startswith("127.0.0.1:")
    assert line == {
        "message": f"unmatched {status}",
        "route": "unmatched",
        "status": status,
        "code": code,
        "outcome": outcome,
    }


async def test_without_the_access_log_what_cannot_be_read_logs_nothing(send, access_lines):
    await send(b"rubbish\r\n\r\n")
    assert access_lines == []


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n",
        GET + b"HOST: y\r\n",
        GET + b"Host: x\r\n",
        b"GET /health HTTP/1.0\r\nHost: x\r\nHost: y\r\n",
    ],
)
async def test_a_request_for_no_host_or_for_two_is_refused(send, head):
    answer = await send(head + CLOSE + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"invalid_http"' in answer


@pytest.mark.parametrize(
    "head",
    [
        GET,
        b"GET /health HTTP/1.1\r\nhost:\r\n",
        b"GET /health HTTP/1.0\r\n",
        b"GET /health HTTP/1.0\r\nHost: x\r\n",
    ],
)
async def test_a_request_for_one_host_is_answered_and_an_older_client_need_not_name_it(send, head):
    assert (await send(head + CLOSE + b"\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_so_many_headers_are_read(send):
    answer = await send(GET + CLOSE + b"X: y\r\n" * (HEADERS - 2) + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"\r\n",
        b"GET /he",
        GET,
        GET + b"X: ",
        # The body of what was refused goes on.
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
    ],
)
@pytest.mark.parametrize("connection_limits", [HASTY])
async def test_a_client_that_trickles_headers_is_not_waited_for(port, start):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def trickle():
        writer.write(start)
        while True:
            await asyncio.sleep(0.02)
            writer.write(b"\r\n" if start in (b"", b"\r\n") else b"a")

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(10):
        try:
            answer = await reader.read()
        except ConnectionError:
            answer = b""
    trickling.cancel()
    writer.close()
    assert answer == b"" or answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 404"))


@pytest.mark.parametrize("connection_limits", [HASTY])
async def test_a_connection_on_which_nothing_comes_is_closed(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("connection_limits", [HASTY])
async def test_a_slow_answer_is_not_cut_by_the_limit_of_heads(port, engine):
    engine.hold = asyncio.Event()
    with socket.create_connection(("127.0.0.1", port)) as client:
        # Its time begins only when the server knows of it, which it cannot yet.
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
        reader, writer = await asyncio.open_connection(sock=client)
        async with asyncio.timeout(10):
            await engine.waiting.wait()
            await asyncio.sleep(2 * HASTY.head_seconds)
            engine.hold.set()
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize("length", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
async def test_a_body_that_trickles_is_408_and_ends_the_connection(port, engine, metric, length):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def trickle():
        writer.write(POST + length)
        while True:
            writer.write(b"1\r\na\r\n" if b"chunked" in length else b"a")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"}}")
    trickling.cancel()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    assert engine.seen == []
    assert metric('xpeft_requests_total{outcome="client_error",route="/v1/classify"}') == 1
    assert await answers(port)


CHUNKED_BODY = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLERS = {
    "length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED_BODY,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNKED_BODY,
    "two lengths": POST + b"Content-Length: 27\r\nContent-Length: 0\r\n\r\n" + BODY,
    "two equal lengths": POST + b"Content-Length: 27\r\nContent-Length: 27\r\n\r\n" + BODY,
    "lengths in one": POST + b"Content-Length: 27, 27\r\n\r\n" + BODY,
    "a length with a sign": POST + b"Content-Length: +27\r\n\r\n" + BODY,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "a length in hex": POST + b"Content-Length: 0x1b\r\n\r\n" + BODY,
    "chunks that are not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED_BODY,
    "chunks twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED_BODY,
    "chunks in disguise": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED_BODY,
    "a blank before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED_BODY,
    "a folded header": POST + b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n" + CHUNKED_BODY,
    "a bare line feed": POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED_BODY,
    "a bare carriage return": POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n" + CHUNKED_BODY,
    "a null byte": POST + b"X: \0\r\nContent-Length: 27\r\n\r\n" + BODY,
    "a chunk size with a sign": POST + b"Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\na\r\n0\r\n\r\n",
    "a chunk longer than said": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "gzip and chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED_BODY,
    "gzip": POST + b"Transfer-Encoding: gzip\r\n\r\n" + CHUNKED_BODY,
    "a method of one's own": b"SMUGGLE /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": b"CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
}


async def test_a_request_of_two_readings_is_refused_and_ends_the_connection(send, engine, caplog):
    for pair, request in SMUGGLERS.items():
        answer = await send(request + SMUGGLED)
        # What turns out within a body ends the connection without a word.
        if answer or "chunk" not in pair:
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ", b"HTTP/1.1 505 ")), pair
            assert answer.count(b"HTTP/1.1 ") == 1, pair
            assert b'{"error":{' in answer, pair
        assert engine.seen == [], pair
    assert caplog.text == ""


async def test_a_trailer_is_no_header(send):
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailer = b"Content-Type: application/json\r\n\r\n"
    assert (await send(head + CHUNKED_BODY.removesuffix(b"\r\n") + trailer)).startswith(b"HTTP/1.1 415 ")


async def test_an_encoded_body_is_415_and_not_read_as_it_is(send, engine):
    for coding in (b"gzip", b"deflate", b"br", b"zstd", b"identity, gzip", b"x"):
        answer = await send(POST + CLOSE + b"Content-Encoding: %s\r\nContent-Length: 27\r\n\r\n" % coding + BODY)
        assert answer.startswith(b"HTTP/1.1 415 "), coding
        assert b"content-encoding" in answer, coding
    assert engine.seen == []


async def test_the_identity_is_no_encoding(send):
    answer = await send(POST + CLOSE + b"Content-Encoding: identity\r\nContent-Length: 27\r\n\r\n" + BODY)
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_an_error_in_a_later_request_does_not_get_into_an_answer_on_its_way(port, engine):
    engine.hold = asyncio.Event()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(POST + b"Content-Length: 27\r\n\r\n" + BODY)
    async with asyncio.timeout(10):
        await engine.waiting.wait()
        writer.write(b"rubbish\r\n\r\n")
        assert await reader.read() == b""
    writer.close()
    assert await answers(port)


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
async def test_a_request_to_speak_something_else_is_answered_in_http_and_is_the_last(send, caplog, upgrade):
    asked = GET + b"Connection: Upgrade\r\nUpgrade: %s\r\nContent-Length: %d\r\n\r\n" % (upgrade, len(SMUGGLED))
    answer = await send(asked, SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert caplog.text == ""


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_after_a_request_to_speak_something_else_is_read_and_what_follows_it_is_not(send, engine, framing):
    # As Java's HttpClient and curl --http2 ask where there is no TLS.
    ask = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQ\r\n"
    told = b"Content-Length: %d\r\n\r\n" % len(BODY) if framing == "length" else b"Transfer-Encoding: chunked\r\n\r\n"
    request = POST + ask + told + (BODY if framing == "length" else CHUNKED_BODY)
    smuggled = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    for parts in ((request + smuggled,), [b"%c" % byte for byte in request], (request + b"rubbish\r\n\r\n",)):
        engine.seen.clear()
        answer = await send(*parts)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close\r\n" in answer
        assert len(engine.seen) == 1


async def test_chunks_that_are_none_after_a_request_to_speak_something_else_end_the_connection(send, engine):
    ask = b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await send(POST + ask + b"zz\r\n") == b""
    assert engine.seen == []


async def told(request):
    for news in (Started(None, 0.0), Piece("one"), Piece("two"), Finished("stop", 1, 2, 0.0)):
        yield news


@pytest.mark.parametrize(
    ("version", "coded"), [(b"1.0", False), (b"1.1", True)], ids=["closing the connection", "a last chunk"]
)
async def test_a_stream_ends_as_the_clients_http_knows_it(send, engine, caplog, version, coded):
    engine.info = dataclasses.replace(engine.info, generates=True)
    engine.generate = told
    body = b'{"profile":"base","prompt":"a","stream":true}'
    head = (POST + CLOSE).replace(b"classify HTTP/1.1", b"generate HTTP/" + version)
    fields, answer = (await send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)).split(b"\r\n\r\n", 1)
    assert fields.startswith(b"HTTP/1.1 200 ")
    assert (b"transfer-encoding: chunked" in fields) == coded
    assert b"connection: close" in fields
    assert answer.startswith(b"data: ") != coded
    assert answer.endswith(b"data: [DONE]\n\n" + b"\r\n0\r\n\r\n" * coded)
    assert caplog.text == ""


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_an_older_client_is_told_the_length_of_what_has_one(send, method):
    fields, answer = (await send(method + b" /health HTTP/1.0\r\n\r\n")).split(b"\r\n\r\n", 1)
    assert b"content-length: 15\r\n" in fields
    assert answer == (b'{"status":"ok"}' if method == b"GET" else b"")


async def test_json_of_any_depth_is_refused_politely(send):
    for depth in (500, 900, 1000, 1024, 5000, 2_000_000):
        for document in (b'{"profile":"p","input":%s}', b'{"x":%s}', b"%s"):
            body = document % (b"[" * depth + b"]" * depth)
            answer = await send(POST + CLOSE + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 422 ", b"HTTP/1.1 413 ")), (depth, answer[:200])
