"""Lets connections in while there is room, and turns others away."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Final

from xpeft_server.api.connections import Connections
from xpeft_server.api.http_protocol import HttpProtocol

log = logging.getLogger(__name__)

# Accepted in a row, before others have their turn on the event loop.
_AT_ONCE: Final = 64
_BACKLOG: Final = 2048
# Without files or memory for more, who waits at the door waits for so long.
_PAUSE_SECONDS: Final = 1.0
# Who is turned away may read why. More than so many at once read nothing.
_TURNED_AWAY: Final = 64
_TURNED_AWAY_SECONDS: Final = 1.0
# What ends a TLS connection in time is not this but who looks whether its client takes anything.
_SHUTDOWN_SECONDS: Final = 86_400.0


class Listener:
    """One socket that listens; not the event loop's own server, which sees no connection before it speaks TLS.

    Args:
        connect: makes the protocol of a connection from its socket.
        no_room: makes what a client without TLS is told where there is no room; one with TLS is told nothing.
        shared: other processes listen on the socket too, and shall have their part of those who come at once.
    """

    def __init__(
        self,
        listening: socket.socket,
        *,
        tls: ssl.SSLContext | None,
        connections: Connections,
        connect: Callable[[socket.socket], HttpProtocol],
        no_room: Callable[[], bytes],
        shared: bool = False,
    ) -> None:
        self._listening = listening
        self._tls = tls
        self._connections = connections
        self._connect = connect
        self._no_room = no_room
        self._at_once = 1 if shared else _AT_ONCE
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[None]] = set()
        self._turned_away: set[_TurnedAway] = set()
        self._pause: asyncio.TimerHandle | None = None
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Let nobody in any more. Who is in stays, but for those who have not finished their handshake."""
        self._loop.remove_reader(self._listening.fileno())
        if self._pause is not None:
            self._pause.cancel()
        for task in self._beginning:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(self._at_once):
            try:
                connected, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                log.error("no connection can be accepted for now: %s", error.strerror or error)
                self._loop.remove_reader(self._listening.fileno())
                self._pause = self._loop.call_later(_PAUSE_SECONDS, self._go_on)
                return
            connected.setblocking(False)
            protocol = self._connect(connected)
            if self._connections.enter(protocol):
                self._begin(self._let_in(connected, protocol))
            elif self._tls is None and len(self._turned_away) < _TURNED_AWAY:
                self._begin(self._turn_away(connected))
            else:
                connected.close()

    def _go_on(self) -> None:
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _let_in(self, connected: socket.socket, protocol: HttpProtocol) -> None:
        limit = None if self._tls is None else self._connections.limits.head_seconds
        options = {} if self._tls is None else {"ssl_shutdown_timeout": _SHUTDOWN_SECONDS}
        try:
            async with asyncio.timeout(limit):
                await self._loop.connect_accepted_socket(lambda: protocol, connected, ssl=self._tls, **options)
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._connections.count_end("late")
            log.debug("a connection did not come to be: %s", error)
            self._connections.leave(protocol)
        except BaseException:
            self._connections.leave(protocol)
            raise

    async def _turn_away(self, connected: socket.socket) -> None:
        await self._loop.connect_accepted_socket(lambda: _TurnedAway(self._no_room(), self._turned_away), connected)


class _TurnedAway(asyncio.Protocol):
    """Says why, and waits a moment for the client to have read it: one who still writes to what is closed might not.

    Args:
        others: all of its kind that are there.
    """

    def __init__(self, words: bytes, others: set[_TurnedAway]) -> None:
        self._words = words
        self._others = others
        others.add(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.write(self._words)
        transport.write_eof()
        self._end = asyncio.get_running_loop().call_later(_TURNED_AWAY_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.discard(self)
        self._end.cancel()
