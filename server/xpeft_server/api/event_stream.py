"""An answer as server-sent events, one JSON document each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple

import orjson
from starlette.types import Receive, Scope, Send

from .departure import unless_client_leaves

DONE: Final = b"data: [DONE]\n\n"
_HEADERS: Final = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"vary", b"accept"))
# A comment now and then, so that no proxy takes a long silence for a dead connection.
_SILENCE: Final = b": still there\n\n"
_SILENT_SECONDS: Final = 15.0


class Document(NamedTuple):
    """``is_last``: after it the stream is complete."""

    value: object
    is_last: bool


class EventStream:
    """An ASGI application: ``data: DOCUMENT`` for each, and ``data: [DONE]`` after the last one.

    The answer begins with the first document: what is raised before it can still be answered as an error. A stream
    that breaks off has no ``[DONE]``.
    """

    def __init__(self, documents: AsyncGenerator[Document, None]) -> None:
        self._documents = documents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A client that goes away ends the stream. Raises: ClientGone."""
        del scope
        async with contextlib.aclosing(self._documents):
            await unless_client_leaves(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        first = await anext(self._documents)
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        await _send_event(send, first)
        while (document := await self._next(send)) is not None:
            await _send_event(send, document)
        await send({"type": "http.response.body", "body": b""})

    async def _next(self, send: Send) -> Document | None:
        """None at the end."""
        coming = asyncio.ensure_future(anext(self._documents, None))
        try:
            while not (await asyncio.wait([coming], timeout=_SILENT_SECONDS))[0]:
                await send({"type": "http.response.body", "body": _SILENCE, "more_body": True})
            return await coming
        finally:
            coming.cancel()
            await asyncio.wait([coming])


async def _send_event(send: Send, document: Document) -> None:
    event = b"data: %s\n\n" % orjson.dumps(document.value)
    await send({"type": "http.response.body", "body": event + DONE if document.is_last else event, "more_body": True})
