"""One keep-alive HTTP connection at the least cost: the client shares the cores with the server."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, cast

import httptools


class ExchangeFailed(Exception):
    """The connection broke, or the server closed it, before the answer was whole."""


class Answer(NamedTuple):
    """``queue`` and ``inference`` in seconds, as the server's headers tell (0 where it tells nothing).

    ``body`` is kept of answers other than 200 only.
    """

    status: int
    queue: float
    inference: float
    body: bytes


class Connection(asyncio.Protocol):
    """Sends one prepared request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._begin()

    async def exchange(self, request: bytes) -> Answer:
        """Raises: ExchangeFailed."""
        if self._transport is None:
            raise ExchangeFailed("the server closed the connection between two requests")
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed it."""
        return self._transport is not None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the server does not answer in HTTP: {error}")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(str(error or "the server closed the connection before it answered"))

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"x-queue-time":
                self._queue = float(value)
            case b"x-inference-time":
                self._inference = float(value)

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._body += body

    def on_message_complete(self) -> None:
        answer = Answer(self._parser.get_status_code(), self._queue, self._inference, self._body)
        self._begin()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(answer)

    def _begin(self) -> None:
        self._queue = self._inference = 0.0
        self._body = b""

    def _fail(self, reason: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ExchangeFailed(reason))
