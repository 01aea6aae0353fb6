"""An error as the last bytes of a connection, where there is no request to answer."""

from __future__ import annotations

from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ..errors import ApiError


def last_words(error: ApiError, default_headers: Iterable[tuple[bytes, bytes]], *, request_id: str) -> bytes:
    """A whole answer that ends the connection.

    Args:
        default_headers: what every answer of the server has.
    """
    body = error.envelope()
    headers = [
        *default_headers,
        *error.encoded_headers(),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", request_id.encode()),
    ]
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    return STATUS_LINE[error.status] + lines + b"\r\n" + body
