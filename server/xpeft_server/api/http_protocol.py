"""HTTP on a connection, with limits that uvicorn and its parser leave open."""

from __future__ import annotations

import asyncio
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .errors import ApiError
from .ids import new_id

HEAD_BYTES: Final = 32 << 10
HEADERS: Final = 100
HEAD_SECONDS: Final = 10.0
_VERSIONS: Final = ("1.1", "1.0")
_CHUNKED: Final = b"chunked"


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, but a client cannot send headers for ever, nor slowly, nor bytes that are no part of a body.

    The parser keeps a header until it is whole, so what is counted is what came in while nothing else went on: a
    head, a trailer or the extension of a chunk ends the connection when it is longer than a head may be. What one
    connection holds is at most that, and what one read of the socket gives.
    """

    head_seconds: float = HEAD_SECONDS

    _steps = 0  # of the parser, beyond heads and trailers
    _idle_bytes = 0  # since the last of them
    _in_head = False
    _is_last = False  # nothing that comes is read any more
    _head_bytes = 0
    _refusal: ApiError | None = None
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_last:
            return
        self._unset_keepalive_if_required()
        steps = self._steps
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing else is spoken here. The parser takes what follows for no body of this request, nor is it another.
            self._is_last = True
            self.cycle.keep_alive = False
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
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
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
        if self.parser.get_http_version() not in _VERSIONS:
            raise self._refused(ApiError(505, "http_version_not_supported", "this server speaks HTTP/1.1"))
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._steps += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._steps += 1
        super().on_message_complete()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES:
            raise self._refused(_too_large())

    def _refused(self, error: ApiError) -> ApiError:
        """To be raised in the parser, which forgets what it was."""
        self._refusal = error
        return error

    def _refuse(self, error: ApiError) -> None:
        """End the connection; say why, unless that would get into an answer that is on its way."""
        self._head_is_there()
        if not self._answering:
            body = error.envelope()
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
                (b"x-request-id", new_id().encode()),
            ]
            lines = b"".join(b"%s: %s\r\n" % header for header in headers)
            self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        self.transport.close()

    def _expect_head(self) -> None:
        """Also where the body of a request goes on that has been answered."""
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.head_seconds, self._head_is_late)

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        self._late = None
        if self._in_head:
            seconds = f"{self.head_seconds:g} seconds"
            self._refuse(ApiError(408, "request_timeout", f"the request's headers took more than {seconds}"))
        else:
            self.transport.close()


def _too_large() -> ApiError:
    return ApiError(431, "headers_too_large", f"the request's line and headers have more than {HEAD_BYTES} bytes")
