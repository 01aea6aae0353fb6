"""An answer as server-sent events, one JSON document each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, NamedTuple

import orjson
from starlette.types import Receive, Scope, Send

from .connection.departure import unless_client_leaves
from .errors import AnswerBroken
from .problems import problem_of
from .replies import Headers

DONE: Final = b"data: [DONE]\n\n"
_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep events until it has some kilobytes of them
)
# A comment in long silences, so that no proxy takes the connection for dead.
_SILENCE: Final = b": still there\n\n"
_SILENT_SECONDS: Final = 15.0


class Opening(NamedTuple):
    """The answer begins, with these headers."""

    headers: Headers


class Document(NamedTuple):
    """``is_last``: after it the stream is complete."""

    value: object
    is_last: bool = False


Events = AsyncGenerator[Opening | Document, None]


class EventStream:
    """An ASGI application, for one answer: ``data: DOCUMENT`` for each, and ``data: [DONE]`` after the last one.

    The answer begins with its `Opening`; documents wait for it. An error before it is answered with its status. After a
    long silence the answer begins without the opening and its headers. A later error becomes an event with the error's
    envelope, without a ``[DONE]``.
    """

    def __init__(self, events: Events, *, headers: Headers = ()) -> None:
        self._events = events
        self._headers = [*_HEADERS, *headers]
        self._spoke = 0.0
        self._begun = False
        self._early: list[Document] = []
        self._turn = asyncio.Lock()  # to send: the answer may begin while a document comes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A client that goes away ends the stream. Raises: ClientGone; AnswerBroken after an error's event."""
        async with aclosing(self._events):
            await unless_client_leaves(scope, receive, self._answer(scope, send))

    async def _answer(self, scope: Scope, send: Send) -> None:
        self._spoke = asyncio.get_running_loop().time()
        company = asyncio.create_task(self._fill_silence(send))
        try:
            async for event in self._events:
                if isinstance(event, Opening):
                    await self._begin(send, event.headers)
                else:
                    await self._tell(send, event)
        except Exception as error:
            async with self._turn:
                if not self._begun:
                    raise
                told = b"data: %s\n\n" % problem_of(error, scope).envelope()
                await send({"type": "http.response.body", "body": told})
            raise AnswerBroken from error
        finally:
            company.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _begin(self, send: Send, headers: Headers = ()) -> None:
        """Unless it has begun."""
        async with self._turn:
            if self._begun:
                return
            await send({"type": "http.response.start", "status": 200, "headers": [*self._headers, *headers]})
            self._begun = True
            for document in self._early:
                await self._say(send, _event(document))
            self._early.clear()

    async def _tell(self, send: Send, document: Document) -> None:
        async with self._turn:
            if self._begun:
                await self._say(send, _event(document))
            else:
                self._early.append(document)

    async def _say(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._spoke = asyncio.get_running_loop().time()

    async def _fill_silence(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        while True:
            left = self._spoke + _SILENT_SECONDS - now()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._begin(send)
                await self._say(send, _SILENCE)


def _event(document: Document) -> bytes:
    event = b"data: %s\n\n" % orjson.dumps(document.value)
    return event + DONE if document.is_last else event
