"""Connections beyond the limit: probes are answered, others get 503."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from xpeft_server.api.access.table import PUBLIC
from xpeft_server.api.connection.connections import Connections
from xpeft_server.api.connection.http_protocol import HttpProtocol

# Time for each of: the handshake, the head of the request, reading the refusal.
SECONDS: Final = 1.0
_METHODS: Final = (b"GET", b"HEAD")
_PATHS: Final = frozenset(path.encode() for path in PUBLIC)
_LINE_END: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_HEAD_BYTES: Final = 4096


class Visitor(asyncio.Protocol):
    """Waits for the head of its request; after a refusal, until the client has read it: a client that still writes to a
    closed connection might not.

    Args:
        protocol: answers a probe; it takes over the connection.
        no_room: makes the answer of all others.
        others: all visitors that are there.
    """

    _told = False
    _end: asyncio.TimerHandle | None = None

    def __init__(
        self, protocol: HttpProtocol, *, connections: Connections, no_room: Callable[[], bytes], others: set[Visitor]
    ) -> None:
        self._protocol = protocol
        self._connections = connections
        self._no_room = no_room
        self._others = others
        self._came = b""
        others.add(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._wait(self._refuse)

    def data_received(self, data: bytes) -> None:
        if self._told:
            return
        self._came += data
        head, complete, _ = self._came.partition(_HEAD_END)
        if len(head) > _HEAD_BYTES or not _may_be_probe(self._came):
            self._refuse()
        elif complete:
            self._answer(head + complete)

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()

    def leave(self) -> None:
        """The connection is closed, or was never established."""
        self._others.discard(self)
        self._wait(None)
        self._count()

    def _answer(self, probe: bytes) -> None:
        if not self._connections.enter_beyond(self._protocol):
            self._refuse()
            return
        self._others.discard(self)
        self._wait(None)
        self._transport.set_protocol(self._protocol)
        self._protocol.answer_only(self._transport, probe)

    def _refuse(self) -> None:
        self._count()
        self._transport.write(self._no_room())
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()
        self._wait(self._transport.abort)

    def _count(self) -> None:
        if not self._told:
            self._told = True
            self._connections.count_end("refused")

    def _wait(self, then: Callable[[], None] | None) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = None if then is None else asyncio.get_running_loop().call_later(SECONDS, then)


def _may_be_probe(came: bytes) -> bool:
    line, complete, _ = came.partition(_LINE_END)
    method, _, rest = line.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    return not complete or (method in _METHODS and path in _PATHS)
