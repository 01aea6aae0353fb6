"""A uvicorn server with our own sockets, signals and connection limits."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Generator, Sequence
from typing import Final

import uvicorn
from fastapi import FastAPI

from xpeft_server.api.connection.connections import ConnectionLimits, Connections
from xpeft_server.api.connection.http_protocol import HttpProtocol
from xpeft_server.api.connection.last_words import last_words
from xpeft_server.api.connection.unparsed_requests import UnparsedRequests
from xpeft_server.api.errors import ApiError
from xpeft_server.api.ids import new_id
from xpeft_server.engine.metrics import Metrics

from .listener import Listener

_NO_ROOM: Final = ApiError(
    503, "too_many_connections", "the server has as many connections as it may", headers={"Retry-After": "1"}
)


class HttpServer(uvicorn.Server):
    """Leaves the signals to the program and says when it listens.

    Args:
        tls: None: plain HTTP.
        access_log: whether unparsable requests get a line; the application logs the others.
        closing_seconds: how long connections may take to finish at the end.
        shared: other processes listen on the same socket.

    Attributes:
        announce: called when it listens.
    """

    announce: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        app: FastAPI,
        *,
        tls: ssl.SSLContext | None,
        limits: ConnectionLimits,
        metrics: Metrics,
        closing_seconds: int,
        access_log: bool = False,
        shared: bool = False,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=closing_seconds,
        )
        config.load()
        super().__init__(config)
        self._tls = tls
        self._connections = Connections(limits, metrics=metrics)
        self._unparsed = UnparsedRequests(metrics=metrics, access_log=access_log)
        self._listeners: Sequence[Listener] = ()
        self._shared = shared

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn gets no socket: our own listener knows of every connection from the moment it is accepted.
        await super().startup([])
        self._listeners = [
            Listener(
                each,
                tls=self._tls,
                connections=self._connections,
                connect=self._protocol,
                no_room=lambda: last_words(_NO_ROOM, self.server_state.default_headers, request_id=new_id()),
                shared=self._shared,
            )
            for each in sockets or ()
        ]
        self.announce()

    async def on_tick(self, counter: int) -> bool:
        self._connections.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self._listeners:
            listener.close()
        await super().shutdown(sockets)

    def _protocol(self, connected: socket.socket) -> HttpProtocol:
        return HttpProtocol(
            self.config,
            self.server_state,
            self.lifespan.state,
            connected=connected,
            connections=self._connections,
            unparsed=self._unparsed,
        )
