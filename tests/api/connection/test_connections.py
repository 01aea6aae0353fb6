"""How many connections there may be, and how long each may wait for its client: over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time

import pytest

from xpeft_server.api.connection.connections import ConnectionLimits, Connections
from xpeft_server.cli.serve import http_server, visitor
from xpeft_server.cli.serve.listener import Listener
from xpeft_server.engine.metrics import Metrics

BODY = b'{"profile":"p","input":"a"}'
ASK = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n" + BODY
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\n\r\n"


@pytest.fixture
async def connect(port):
    """Opens connections, and closes them in the end."""
    writers = []

    async def connect():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.close()


@pytest.fixture
async def ask(connect):
    """A connection on which something was asked, and the answer of which was read."""

    async def ask(request):
        reader, writer = await connect()
        writer.write(request)
        return reader, writer, await whole(reader)

    return ask


async def ends(reader):
    async with asyncio.timeout(20):
        return await reader.read() == b""


async def whole(reader):
    """The next answer."""
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await reader.readexactly(length)


async def answered(reader):
    """The first line of what comes."""
    async with asyncio.timeout(20):
        return await reader.readline()


FEW = ConnectionLimits(most=3, idle_seconds=30, send_seconds=30)


@pytest.fixture
async def full(connect, engine, connection_limits, until):
    """Connections on which requests are answered once ``engine.hold`` is set: as many as there may be."""
    engine.hold = asyncio.Event()
    busy = [await connect() for _ in range(connection_limits.most)]
    for _, writer in busy:
        writer.write(ASK)
    await until(lambda: len(engine.seen) == connection_limits.most)
    return busy


@pytest.fixture
def patience(monkeypatch):
    """Nothing happens to those for whom there is no room because of the time that they take."""
    monkeypatch.setattr(visitor, "SECONDS", 60.0)


async def everything(reader):
    """What comes until the connection ends."""
    async with asyncio.timeout(20):
        return await reader.read()


@pytest.mark.parametrize("connection_limits", [FEW])
async def test_beyond_the_limit_a_connection_is_told_at_once_to_come_again(
    full, patience, connect, ask, engine, metric, until
):
    assert metric("xpeft_connections") == metric("xpeft_connections_limit") == FEW.most
    reader, writer = await connect()
    writer.write(ASK)
    told = await everything(reader)
    assert told.startswith(b"HTTP/1.1 503 ")
    for line in (b"retry-after: 1\r\n", b"connection: close\r\n", b"x-request-id: "):
        assert line in told
    assert b'"code":"too_many_connections"' in told
    assert metric('xpeft_connection_ends_total{reason="refused"}') == 1
    assert metric("xpeft_connections") == FEW.most
    full[0][1].close()
    await until(lambda: metric("xpeft_connections") == FEW.most - 1)
    assert b"connection: close" not in (await ask(HEALTH))[2]
    engine.hold.set()
    for reader, _ in full[1:]:
        assert (await answered(reader)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "begin", [b"GET /health HTTP/1.1", b"HEAD /health HTTP/1.0", b"GET /ready HTTP/1.1", b"HEAD /ready?full=1 HTTP/1.1"]
)
@pytest.mark.parametrize("connection_limits", [FEW])
async def test_a_probe_is_answered_though_there_is_no_room(full, patience, connect, metric, begin):
    reader, writer = await connect()
    for part in (begin[:7], begin[7:] + b"\r\n", b"Host: x\r\nConnection: keep-alive\r\n", b"\r\n"):
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.01)
    answer = await everything(reader)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\n") == begin.startswith(b"HEAD")
    assert metric('xpeft_connection_ends_total{reason="refused"}') == 0
    assert metric("xpeft_connections") == FEW.most


@pytest.mark.parametrize("connection_limits", [FEW])
async def test_where_there_is_no_room_a_probe_says_what_is_so(full, patience, connect, engine):
    engine.checks["store"] = "away"
    reader, writer = await connect()
    writer.write(HEALTH.replace(b"health", b"ready"))
    answer = await everything(reader)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"status":"not_ready"' in answer


@pytest.mark.parametrize("after", [ASK, b"x" * 1000, HEALTH], ids=["a request", "what is no request", "another probe"])
@pytest.mark.parametrize("connection_limits", [FEW])
async def test_after_a_probe_for_which_there_was_no_room_nothing_more_is_read(full, patience, connect, engine, after):
    reader, writer = await connect()
    writer.write(HEALTH + after)
    answer = await everything(reader)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b'{"status":"ok"}')
    assert answer.count(b"HTTP/1.1") == 1
    assert len(engine.seen) == FEW.most


@pytest.mark.parametrize(
    "request_line",
    [
        b"POST /health HTTP/1.1",
        b"GET /healthy HTTP/1.1",
        b"GET /metrics HTTP/1.1",
        b"GET /health/../v1/models HTTP/1.1",
        b"GET http://x/health HTTP/1.1",
        b"get /health HTTP/1.1",
        b" GET /health HTTP/1.1",
        b"\r\nGET /health HTTP/1.1",
        b"\x16\x03\x01\r\n",
    ],
)
@pytest.mark.parametrize("connection_limits", [FEW])
async def test_what_is_no_probe_is_told_to_come_again(full, patience, connect, metric, request_line):
    reader, writer = await connect()
    writer.write(request_line + b"\r\nHost: x\r\n\r\n")
    assert b'"code":"too_many_connections"' in await everything(reader)
    assert metric('xpeft_connection_ends_total{reason="refused"}') == 1


@pytest.mark.parametrize("begin", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
@pytest.mark.parametrize("connection_limits", [FEW])
async def test_who_is_late_to_say_what_it_came_for_is_told_to_come_again(full, connect, metric, begin):
    reader, writer = await connect()
    writer.write(begin)
    assert b'"code":"too_many_connections"' in await everything(reader)
    assert metric('xpeft_connection_ends_total{reason="refused"}') == 1


@pytest.mark.parametrize("connection_limits", [FEW])
async def test_a_probe_with_a_long_head_is_told_to_come_again(full, patience, connect):
    reader, writer = await connect()
    writer.write(HEALTH[:-2] + b"X: " + b"x" * 5000)
    assert b'"code":"too_many_connections"' in await everything(reader)


@pytest.mark.parametrize("connection_limits", [FEW])
async def test_probes_for_which_there_is_no_room_do_not_take_all_of_it(full, patience, connect, metric):
    """Their places are free again with their answers."""
    for _ in range(3):
        probes = [await connect() for _ in range(30)]
        for _, writer in probes:
            writer.write(HEALTH)
        answers = [await everything(reader) for reader, _ in probes]
        assert {answer[:12] for answer in answers} <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        assert sum(answer.startswith(b"HTTP/1.1 200") for answer in answers) >= 8
        for _, writer in probes:
            writer.close()
    assert metric("xpeft_connections") == FEW.most


def test_beyond_the_limit_there_are_eight_places():
    connections = Connections(FEW, metrics=Metrics())
    probes = [object() for _ in range(9)]
    assert [connections.enter_beyond(each) for each in probes] == [True] * 8 + [False]
    connections.leave(probes[0])
    assert connections.enter_beyond(probes[8])


@pytest.mark.parametrize("connection_limits", [FEW])
async def test_who_leaves_without_a_word_was_refused_and_takes_nobodys_place(full, patience, connect, metric, until):
    for refused in range(1, 101):
        _, writer = await connect()
        writer.close()
        await until(lambda: metric('xpeft_connection_ends_total{reason="refused"}') == refused)  # noqa: B023
    reader, writer = await connect()
    writer.write(HEALTH)
    assert (await everything(reader)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("connection_limits", [FEW])
async def test_who_sends_all_of_a_long_request_reads_that_there_is_no_room(full, connect):
    reader, writer = await connect()
    writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 1_000_000)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            await writer.drain()
    assert (await answered(reader)).startswith(b"HTTP/1.1 503 ")


CROWDED = ConnectionLimits(most=10, idle_seconds=30, send_seconds=30, rest_seconds=0)


@pytest.mark.parametrize("connection_limits", [CROWDED])
async def test_above_nine_tenths_of_the_limit_who_was_idle_for_longest_makes_room(ask, connect, engine, metric, until):
    engine.hold = asyncio.Event()
    busy_reader, busy = await connect()
    busy.write(ASK)
    await until(engine.waiting.is_set)
    idle = [await ask(HEALTH) for _ in range(8)]
    # The first has something to do again, and waits for less long than the second from then on.
    idle[0][1].write(HEALTH)
    assert b" 200 OK" in await whole(idle[0][0])
    assert metric('xpeft_connection_ends_total{reason="room"}') == 0
    assert b" 200 OK" in (await ask(HEALTH))[2]
    assert await ends(idle[1][0])
    await until(lambda: metric("xpeft_connections") == 9)
    assert metric('xpeft_connection_ends_total{reason="room"}') == 1
    for reader, writer, _ in (idle[0], *idle[2:]):
        writer.write(HEALTH)
        assert (await answered(reader)).startswith(b"HTTP/1.1 200")
    engine.hold.set()
    assert (await answered(busy_reader)).startswith(b"HTTP/1.1 200")


def test_nobody_makes_room_between_two_requests_of_its_work():
    now = 100.0
    limits = ConnectionLimits(most=10, idle_seconds=30, send_seconds=30, rest_seconds=1)
    connections = Connections(limits, metrics=Metrics(), clock=lambda: now)
    closed = []

    class Open:
        def make_room(self):
            closed.append(self)

    first, *others = (Open() for _ in range(9))
    for each in (first, *others):
        assert connections.enter(each)
        connections.waits(each)
    now += 0.9
    assert connections.enter(Open())
    assert closed == []
    now += 0.1
    assert not connections.enter(Open())
    assert closed == [first]
    connections.leave(first)
    assert connections.enter(Open())
    assert closed == [first, others[0]]


def test_who_asks_nothing_for_too_long_is_ended_but_not_who_is_about_something():
    now = 100.0
    limits = ConnectionLimits(most=10, idle_seconds=30, send_seconds=30)
    connections = Connections(limits, metrics=Metrics(), clock=lambda: now)
    ended = []

    class Open:
        busy = False

        def end_idle(self, at):
            assert at == now
            if not self.busy:
                ended.append(self)
            return not self.busy

    first, second, third = (Open() for _ in range(3))
    for each in (first, second, third):
        assert connections.enter(each)
        connections.waits(each)
        now += 1
    second.busy = True
    now = 129.0
    connections.sweep()
    assert ended == []
    now = 131.0
    connections.sweep()
    assert ended == [first]
    # Its time begins anew; the others' do not.
    second.busy = False
    now = 160.0
    connections.sweep()
    assert ended == [first, third]
    now = 161.0
    connections.sweep()
    assert ended == [first, third, second]


SLOW = ConnectionLimits(most=9, idle_seconds=30, send_seconds=30, head_seconds=0.5)


@pytest.mark.parametrize("connection_limits", [SLOW])
async def test_who_has_begun_a_further_request_is_not_idle(driven, ask, metric, until):
    (connections,) = driven
    reader, writer, _ = await ask(HEALTH)
    (connection,) = connections._open
    writer.write(HEALTH[:9])
    await until(lambda: connection._in_head)
    connections.pass_time(SLOW.idle_seconds)
    assert (await answered(reader)).startswith(b"HTTP/1.1 408 ")
    assert metric('xpeft_connection_ends_total{reason="idle"}') == 0


@pytest.mark.parametrize("connection_limits", [ConnectionLimits(most=9, idle_seconds=0.2, send_seconds=30)])
async def test_a_connection_without_a_further_request_is_closed(ask, metric, until):
    reader, _, answer = await ask(HEALTH)
    assert b" 200 OK" in answer
    assert await ends(reader)
    await until(lambda: metric('xpeft_connection_ends_total{reason="idle"}') == 1)
    await until(lambda: metric("xpeft_connections") == 0)


HASTY = ConnectionLimits(most=9, idle_seconds=30, send_seconds=30, head_seconds=0.2)


@pytest.mark.parametrize("connection_limits", [HASTY])
async def test_a_connection_without_a_request_is_closed_and_counted(connect, port, metric, until):
    reader, _ = await connect()
    assert await ends(reader)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(HEALTH[:9])  # its time begins only when the server knows of it, which it cannot yet
        trickling_reader, trickling = await asyncio.open_connection(sock=client)
        assert (await answered(trickling_reader)).startswith(b"HTTP/1.1 408 ")
        trickling.close()
    await until(lambda: metric('xpeft_connection_ends_total{reason="late"}') == 2)


def read_until_reset(client):
    """How much came before the connection was cut."""
    read = 0
    try:
        while part := client.recv(1 << 20):
            read += len(part)
    except ConnectionResetError:
        return read
    pytest.fail(f"the connection ended as it should, after {read} bytes")


@pytest.fixture
def lazy(port):
    """A client whose machine takes little; it is not told what comes, it has to read."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.setblocking(False)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        yield client


class Driven(Connections):
    """Time passes, and they are looked at, when a test says so."""

    now = 100.0

    def __init__(self, limits, *, metrics):
        super().__init__(limits, metrics=metrics, clock=lambda: self.now)

    def pass_time(self, seconds):
        self.now += seconds
        self.sweep()


@pytest.fixture
def driven(monkeypatch):
    """The connections of the server that starts after this."""
    made = []

    def make(limits, *, metrics):
        made.append(Driven(limits, metrics=metrics))
        return made[-1]

    monkeypatch.setattr(http_server, "Connections", make)
    return made


IMPATIENT = ConnectionLimits(most=10_000, idle_seconds=0.2, send_seconds=0.4)


@pytest.mark.parametrize("connection_limits", [IMPATIENT])
async def test_who_takes_nothing_of_an_answer_loses_its_connection(lazy, ask, metric, caplog):
    lazy.sendall(LARGE)
    began = time.monotonic()
    async with asyncio.timeout(20):
        while metric('xpeft_connection_ends_total{reason="unread"}') == 0:
            assert b" 200 OK" in (await ask(HEALTH))[2]
    assert time.monotonic() - began >= IMPATIENT.send_seconds
    assert read_until_reset(lazy)
    told = [record for record in caplog.records if "took nothing" in record.message]
    assert [(record.levelno, record.fields) for record in told] == [
        (logging.WARNING, {"request_id": "mine", "tenant": "default"})
    ]


@pytest.mark.parametrize("connection_limits", [IMPATIENT])
async def test_who_reads_slowly_but_reads_gets_everything(driven, lazy, ask, metric, until):
    (connections,) = driven
    await until(lambda: connections._open)
    (outflow,) = (each._outflow for each in connections._open)
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    lazy.sendall(LARGE)
    size = len((await ask(LARGE))[2])
    read = looks = 0
    while read < size:
        connections.pass_time(0.75 * IMPATIENT.send_seconds)
        looks += 1
        taken = outflow._account().taken
        read += len(await asyncio.to_thread(lazy.recv, size))
        await until(lambda taken=taken: outflow._account().taken > taken or not outflow._account().owes)
    assert read == size
    assert looks > 2
    assert metric('xpeft_connection_ends_total{reason="unread"}') == 0
    # It was idle from when it had taken the answer, as the other one is.
    connections.pass_time(IMPATIENT.idle_seconds)
    assert await asyncio.to_thread(lazy.recv, 1) == b""
    assert metric('xpeft_connection_ends_total{reason="idle"}') == 2


async def test_a_door_without_files_is_tried_again(app, metrics, connection_limits, caplog, until):
    class Full(socket.socket):
        tried = 0

        def accept(self):
            Full.tried += 1
            raise OSError(errno.EMFILE, "Too many open files")

    with Full() as listening, socket.socket() as client:
        listening.bind(("127.0.0.1", 0))
        listener = Listener(
            listening,
            tls=None,
            connections=Connections(connection_limits, metrics=metrics),
            connect=lambda connected: pytest.fail(f"{connected} was accepted"),
            no_room=bytes,
        )
        client.connect(listening.getsockname())
        began = time.monotonic()
        await until(lambda: Full.tried == 2)
        assert time.monotonic() - began >= 1
        listener.close()
    assert [record.message for record in caplog.records] == [
        "no connection can be accepted for now: Too many open files"
    ] * 2
