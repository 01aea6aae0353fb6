"""Complete answers as ASGI messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson
from starlette.types import Receive, Scope, Send

from .errors import ApiError

JSON: Final = b"application/json"
# The store could not be asked whether this is still the profile's version.
UNVERIFIED: Final = (b"x-profile-unverified", b"true")
# The same address has another media type, too.
VARY: Final = (b"vary", b"accept")
Headers = Sequence[tuple[bytes, bytes]]


class Reply:
    """An answer that is sent whole; an ASGI application."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(
        self, body: bytes = b"", *, status: int = 200, media_type: bytes | None = None, headers: Headers = ()
    ) -> None:
        self._status = status
        self._body = body
        self._headers = list(headers)
        if media_type is not None:
            self._headers.append((b"content-type", media_type))
        if status not in (204, 304):
            self._headers.append((b"content-length", b"%d" % len(body)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        body = b"" if scope["method"] == "HEAD" else self._body
        await send({"type": "http.response.body", "body": body})


def json_reply(document: object, *, status: int = 200, headers: Headers = ()) -> Reply:
    return Reply(orjson.dumps(document), status=status, media_type=JSON, headers=headers)


def error_reply(error: ApiError) -> Reply:
    return Reply(error.envelope(), status=error.status, media_type=JSON, headers=error.encoded_headers())
