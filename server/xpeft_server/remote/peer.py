"""Two processes of one server that call each other's methods over a socket of their own.

Messages are pickled: both ends are the same program, and nothing else can write to the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

from xpeft_server.engine.errors import InternalError, Unavailable

from .error_value import DOMAIN_ERRORS, ErrorValue

logger = logging.getLogger(__name__)

Method = Callable[..., Awaitable[Any]] | Callable[..., AsyncGenerator[Any, None]]
"""Answers once, or item by item. It is cancelled, or closed, when the caller withdraws."""

_LENGTH: Final = struct.Struct("<I")
_CALL, _CANCEL, _ITEM, _ANSWER, _FAILED = range(5)


class Peer(asyncio.Protocol):
    """One end. Used from its event loop alone; what is sent in one iteration of the loop is one write.

    Args:
        methods: what the other end may call, by name.
        on_lost: called once the other end is gone and every call has failed.
    """

    def __init__(self, methods: Mapping[str, Method], *, on_lost: Callable[[], None]) -> None:
        self._methods = methods
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._outgoing: list[bytes] = []
        self._last_number = 0
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._streams: dict[int, asyncio.Queue[tuple[int, Any]]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._lost = False

    async def call(self, method: str, *arguments: object) -> Any:
        """The method's answer; cancelling this withdraws the call.

        Raises: what the method raised if that is a `DomainError`, otherwise InternalError; Unavailable if the other end
            is gone.
        """
        number = self._begin(method, arguments)
        answer = self._calls[number] = self._loop.create_future()
        try:
            return await answer
        except asyncio.CancelledError:
            self._send((_CANCEL, number))
            raise
        finally:
            del self._calls[number]

    async def stream(self, method: str, *arguments: object) -> AsyncGenerator[Any, None]:
        """The method's items; closing this withdraws the call. Raises: as `call`."""
        number = self._begin(method, arguments)
        items = self._streams[number] = asyncio.Queue()
        kind = _ITEM
        try:
            while True:
                kind, value = await items.get()
                if kind == _FAILED:
                    raise value.error()
                if kind == _ANSWER:
                    return
                yield value
        finally:
            del self._streams[number]
            if kind == _ITEM:
                self._send((_CANCEL, number))

    def close(self) -> None:
        """Messages that were sent are still written."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._flush()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at = 0
        while len(received) >= at + _LENGTH.size:
            (length,) = _LENGTH.unpack_from(received, at)
            end = at + _LENGTH.size + length
            if len(received) < end:
                break
            with memoryview(received) as view, view[at + _LENGTH.size : end] as message:
                self._handle(*pickle.loads(message))  # noqa: S301  # see the module
            at = end
        del received[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        for task in self._tasks.values():
            task.cancel()
        gone = ErrorValue.of(_gone())
        for number in list(self._calls):
            self._handle(_FAILED, number, gone)
        for items in self._streams.values():
            items.put_nowait((_FAILED, gone))
        self._on_lost()

    def _begin(self, method: str, arguments: tuple[object, ...]) -> int:
        if self._lost:
            raise _gone()
        self._last_number += 1
        self._send((_CALL, self._last_number, method, arguments))
        return self._last_number

    def _handle(self, kind: int, number: int, *rest: Any) -> None:
        if kind == _CALL:
            task = self._tasks[number] = self._loop.create_task(self._run(number, *rest))
            task.add_done_callback(lambda _: self._tasks.pop(number))
        elif kind == _CANCEL:
            if number in self._tasks:
                self._tasks[number].cancel()
        elif number in self._streams:
            self._streams[number].put_nowait((kind, *rest))
        elif number in self._calls and not self._calls[number].done():
            (value,) = rest
            if kind == _FAILED:
                self._calls[number].set_exception(value.error())
            else:
                self._calls[number].set_result(value)

    async def _run(self, number: int, method: str, arguments: tuple[object, ...]) -> None:
        try:
            made = self._methods[method](*arguments)
            value = None
            if isinstance(made, AsyncGenerator):
                async with aclosing(made) as items:
                    async for item in items:
                        self._send((_ITEM, number, item))
            else:
                value = await made
            self._send((_ANSWER, number, value))
        except asyncio.CancelledError:
            # A caller that withdrew waits no longer; if the task was cancelled otherwise, the caller must be told.
            self._send((_FAILED, number, ErrorValue.of(Unavailable(f"{method} was given up"))))
            raise
        except Exception as error:
            self._fail(number, method, error)

    def _fail(self, number: int, method: str, error: Exception) -> None:
        if isinstance(error, DOMAIN_ERRORS):
            with contextlib.suppress(Exception):  # it cannot be pickled
                self._send((_FAILED, number, ErrorValue.of(error)))
                return
        logger.error("%s, called by another process of this server, failed", method, exc_info=error)
        self._send((_FAILED, number, ErrorValue.of(InternalError(f"{method} failed: {error!r}"))))

    def _send(self, message: tuple[object, ...]) -> None:
        if self._lost:
            return
        pickled = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += (_LENGTH.pack(len(pickled)), pickled)

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._outgoing))
            self._outgoing.clear()


def _gone() -> Unavailable:
    return Unavailable("another process of this server went away", retry_after=5.0)
