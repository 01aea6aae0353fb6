"""Joins the head and the body of an answer into one write."""

from __future__ import annotations

import asyncio


class JoinedWrites:
    """What a connection's protocol needs of its transport. A write waits for the next one, but no longer than the event
    loop's turn.

    uvicorn writes head and body separately: two system calls and two packets, which cost more than all other work on a
    small answer.
    """

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._held:
            self._transport.writelines((self._held, data))
            self._held = b""
        else:
            self._held = data
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._held = b""
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        # If the connection was lost meanwhile, nobody reads it.
        if self._held and not self._transport.is_closing():
            self._transport.write(self._held)
        self._held = b""
