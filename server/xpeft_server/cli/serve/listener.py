"""Accepts connections while there is room, and turns others away."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Final

from xpeft_server.api.connection.connections import Connections
from xpeft_server.api.connection.http_protocol import HttpProtocol

from .front import FrontFailed
from .server_socket import address_of
from .visitor import SECONDS, Visitor

log = logging.getLogger(__name__)

# Connections accepted in a row before the event loop does anything else.
_AT_ONCE: Final = 64
_BACKLOG: Final = 2048
# Without files or memory for more, connections wait for so long to be accepted.
_PAUSE_SECONDS: Final = 1.0
# Connections beyond the limit that are read and answered at a time.
_VISITORS: Final = 64
# `Connections.sweep` ends a TLS connection whose client reads nothing; this limit never comes first.
_SHUTDOWN_SECONDS: Final = 86_400.0


class Listener:
    """One listening socket. The event loop's own server would see no connection before its TLS handshake.

    Args:
        connect: makes the protocol of a connection from its socket.
        no_room: makes the answer of connections beyond the limit, unless they are probes.
        shared: other processes listen on the same socket, and shall have their part of a burst of connections.
    Raises: FrontFailed if another program, which had bound the address too, listens by now.
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
        self._visitors: set[Visitor] = set()
        self._pause: asyncio.TimerHandle | None = None
        try:
            listening.listen(_BACKLOG)
        except OSError as error:
            raise FrontFailed(f"cannot listen at {address_of(listening)}: {error.strerror or error}") from None
        listening.setblocking(False)
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more. Open connections stay, except those that have not finished their handshake."""
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
            elif len(self._visitors) < _VISITORS:
                self._begin(self._meet(connected, self._visitor(protocol)))
            else:
                self._connections.count_end("refused")
                connected.close()

    def _go_on(self) -> None:
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _let_in(self, connected: socket.socket, protocol: HttpProtocol) -> None:
        try:
            await self._connect_to(connected, protocol, self._connections.limits.head_seconds)
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._connections.count_end("late")
            log.debug("a connection did not come to be: %s", error)
            self._connections.leave(protocol)
        except BaseException:
            self._connections.leave(protocol)
            raise

    def _visitor(self, protocol: HttpProtocol) -> Visitor:
        return Visitor(protocol, connections=self._connections, no_room=self._no_room, others=self._visitors)

    async def _meet(self, connected: socket.socket, visitor: Visitor) -> None:
        try:
            await self._connect_to(connected, visitor, SECONDS)
        except OSError as error:
            log.debug("a connection for which there is no room did not come to be: %s", error)
            visitor.leave()
        except BaseException:
            visitor.leave()
            raise

    async def _connect_to(self, connected: socket.socket, protocol: asyncio.Protocol, seconds: float) -> None:
        """Raises: OSError; if a handshake takes longer than ``seconds``, as a TimeoutError."""
        limit = None if self._tls is None else seconds
        options = {} if self._tls is None else {"ssl_shutdown_timeout": _SHUTDOWN_SECONDS}
        async with asyncio.timeout(limit):
            await self._loop.connect_accepted_socket(lambda: protocol, connected, ssl=self._tls, **options)
