"""The body of a request to speak another protocol, of which the parser of its connection reads the head alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import httptools

_FRAMING: Final = (b"content-length", b"transfer-encoding")


class UnreadBody:
    """Read by a parser of its own, up to its end; later bytes are ignored. Source: RFC 9110, 7.8.

    Args:
        headers: the request's, by which a body is told from what follows it.
    """

    def __init__(
        self, headers: Iterable[tuple[bytes, bytes]], *, on_body: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> None:
        self._tell = on_body
        self._on_end = on_end
        self._ended = False
        self._parser = httptools.HttpRequestParser(self)
        framing = b"".join(b"%s: %s\r\n" % header for header in headers if header[0] in _FRAMING)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % framing)

    def feed_data(self, data: bytes) -> None:
        """Raises: HttpParserError for what is no body."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._ended:
                raise

    def on_body(self, body: bytes) -> None:
        if not self._ended:
            self._tell(body)

    def on_message_complete(self) -> None:
        if not self._ended:
            self._ended = True
            self._on_end()
