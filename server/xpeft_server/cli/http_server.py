"""uvicorn as this program uses it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from xpeft_server.api.http_protocol import HttpProtocol


class HttpServer(uvicorn.Server):
    """Leaves the signals to the program and says when it listens.

    Args:
        tls: how connections are secured; None: they are not.
        closing_seconds: how long it waits, when told to end, for connections to be done.
    """

    def __init__(
        self, app: FastAPI, *, tls: ssl.SSLContext | None, closing_seconds: int, announce: Callable[[], None]
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
        config.ssl = tls
        super().__init__(config)
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()
