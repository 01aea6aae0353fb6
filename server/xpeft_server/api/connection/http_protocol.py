"""HTTP on a connection, with limits that uvicorn and its parser leave open."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from ..bodies.reader import BODY_IS_THERE
from ..context import labels_of
from ..errors import ApiError
from ..ids import new_id
from .close_delimited import close_delimited
from .connections import Connections, EndReason
from .departure import DEPARTURE, Departure
from .joined_writes import JoinedWrites
from .last_words import last_words
from .outflow import Outflow
from .unparsed_requests import UnparsedRequests
from .unread_body import UnreadBody

log = logging.getLogger(__name__)

HEAD_BYTES: Final = 32 << 10
HEADERS: Final = 100
_VERSIONS: Final = ("1.1", "1.0")
_CHUNKED: Final = b"chunked"


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits: on the size and duration of headers, on bytes that belong to no body, and on the
    time that a client may leave an answer unread.

    The parser keeps a header until it is complete, so bytes that come in without any progress are counted: a head, a
    trailer or a chunk extension that is longer than a head may be ends the connection. A connection never holds more
    than that and one read of the socket.

    Args:
        connected: the socket that its transport reads and writes.
        connections: all of the server's; this one has entered, and leaves when it is lost.
        unparsed: records requests that are refused here.
    """

    _steps = 0  # of the parser, beyond heads and trailers
    _idle_bytes = 0  # since the last of them
    _in_head = False
    _is_last = False  # nothing that comes is read any more
    _unread: UnreadBody | None = None  # of the last request
    _head_bytes = 0
    _refusal: ApiError | None = None
    _late: asyncio.TimerHandle | None = None
    _answered: RequestResponseCycle | None = None  # uvicorn's ``cycle`` is what was read last, and may wait its turn
    _nothing_owed = False

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        *,
        connected: socket.socket,
        connections: Connections,
        unparsed: UnparsedRequests,
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._connected = connected
        self._connections = connections
        self._unparsed = unparsed
        self._limits = connections.limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = JoinedWrites(transport, self.loop)  # type: ignore[assignment]
        self._outflow = Outflow(self._connected, transport)
        self._expect_head()

    def answer_only(self, transport: asyncio.Transport, head: bytes) -> None:
        """Take over a connection for one request, the head of which came already; nothing else that comes is read."""
        self.connection_made(transport)
        self.data_received(head)
        self.shutdown()
        self._is_last = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        self._connections.leave(self)
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
            self._answered.scope[DEPARTURE].tell()  # type: ignore[typeddict-item]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_last:
            return
        steps = self._steps
        try:
            (self._unread or self.parser).feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # No other protocol is supported: the request is answered in HTTP, as the connection's last.
            self.cycle.keep_alive = False
            self._unread = UnreadBody(self.headers, on_body=self.on_body, on_end=self._message_is_there)
            self.data_received(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal or ApiError(400, "invalid_http", "this is not HTTP/1.1"))
            return
        self._idle_bytes = self._idle_bytes + len(data) if steps == self._steps else 0
        if self._idle_bytes > HEAD_BYTES:
            self._refuse(_too_large())
        elif not self._answering:
            self._expect_head()

    def on_message_begin(self) -> None:
        self._steps += 1
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        if self._head_bytes > HEAD_BYTES:
            raise self._refused(_too_large())
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > HEAD_BYTES:
            raise self._refused(_too_large())
        if not self._in_head:
            return  # a trailer, which nobody reads
        if len(self.headers) == HEADERS:
            raise self._refused(ApiError(431, "too_many_headers", f"the request has more than {HEADERS} headers"))
        if name.lower() == b"transfer-encoding" and value.strip().lower() != _CHUNKED:
            message = "a transfer-encoding other than chunked is not supported; send the body as it is"
            raise self._refused(ApiError(501, "unsupported_transfer_encoding", message))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._steps += 1
        self._in_head = False
        self._head_is_there()
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            raise self._refused(ApiError(505, "http_version_not_supported", "this server speaks HTTP/1.1"))
        self._check_host(version)
        answering = self._answering
        self.scope[DEPARTURE] = Departure()  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if version == "1.0":
            self.cycle.send = close_delimited(self.cycle)  # type: ignore[assignment,method-assign]
        if not answering:
            self._answered = self.cycle
            self._connections.works(self)

    def on_body(self, body: bytes) -> None:
        self._steps += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        # The parser takes the head of an upgrade request for all of it.
        if not self.parser.should_upgrade():
            self._message_is_there()

    def _message_is_there(self) -> None:
        self._steps += 1
        self.scope[BODY_IS_THERE] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()
        # If the body's last part filled the buffer, nobody will ask for more, and without this a client that leaves is
        # not noticed. Behind a pipelined request reading stays paused.
        if self.cycle is self._answered:
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answered = self.pipeline[-1][0]
            super().on_response_complete()
            return
        # As uvicorn does, but for its timer: `Connections` knows since when a connection has been idle.
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._connections.waits(self)

    def make_room(self) -> None:
        self._close()

    def look(self, now: float) -> bool:
        """Returns: whether an answer is under way, or bytes of one."""
        untaken = self._outflow.untaken_for(now)
        if untaken is not None:
            self._nothing_owed = False
            if untaken < self._limits.send_seconds:
                return True
            self._drop()
            return False
        if not self.transport.is_closing():
            return self._answering
        # TLS waits for the client's close. One more round is for bytes that it holds back until the kernel has room.
        if self._nothing_owed:
            self.transport.abort()
        self._nothing_owed = True
        return True

    def end_idle(self, now: float) -> bool:
        # A client that sends a head has a time limit of its own, and one that still reads is not idle.
        if self._late is not None or self._outflow.untaken_for(now) is not None:
            return False
        self._end("idle")
        return True

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _check_host(self, version: str) -> None:
        """Refuse ambiguous hosts: a proxy may have read another one. Source: RFC 9112, 3.2."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (version == "1.1" and not hosts):
            message = f"the request has {hosts or 'no'} host headers, it needs one"
            raise self._refused(ApiError(400, "invalid_http", message))

    def _refused(self, error: ApiError) -> ApiError:
        """The error, kept because the parser replaces what is raised in it."""
        self._refusal = error
        return error

    def _refuse(self, error: ApiError) -> None:
        """End the connection. Say why, unless that would end up within an answer that is on its way."""
        self._head_is_there()
        if not self._answering:
            request_id = new_id()
            self.transport.write(last_words(error, self.server_state.default_headers, request_id=request_id))
            self._unparsed.observe(error, request_id=request_id, client=self.client)
        self._close()

    def _end(self, reason: EndReason) -> None:
        if not self.transport.is_closing():
            self._connections.count_end(reason)
            self._close()

    def _close(self) -> None:
        """Close; the client may still take what was sent, as long as it takes some of it in time."""
        self._connections.works(self)
        self.transport.close()

    def _drop(self) -> None:
        self._connections.count_end("unread")
        labels = {} if self._answered is None else labels_of(self._answered.scope)
        log.warning(
            "a client took nothing of its answer for %g s: its connection was ended",
            self._limits.send_seconds,
            extra={"fields": labels},
        )
        self._outflow.drop()

    def _expect_head(self) -> None:
        """Also where the body of a request goes on that has been answered."""
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self._limits.head_seconds, self._head_is_late)

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        self._late = None
        if self._in_head:
            seconds = f"{self._limits.head_seconds:g} seconds"
            self._connections.count_end("late")
            self._refuse(ApiError(408, "request_timeout", f"the request's headers took more than {seconds}"))
        else:
            self._end("late")


def _too_large() -> ApiError:
    return ApiError(431, "headers_too_large", f"the request's line and headers have more than {HEAD_BYTES} bytes")
