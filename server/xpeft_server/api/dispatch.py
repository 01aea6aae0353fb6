"""From a path's template and a method to what answers it.

FastAPI documents the endpoints, but does not call them. It does not parse bodies, which have limits of their own and
one error envelope, and it does not find routes, because the gate has matched the path to a template already. Either
would cost more than all our work on a small request.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from .context import context_of
from .operation import Handler


class Dispatch:
    """Innermost of the application.

    Args:
        handlers: template and method → what takes the request and returns an ASGI answer.
        otherwise: takes what is in no handler's place.
    """

    def __init__(self, handlers: Mapping[tuple[str, str], Handler], *, otherwise: ASGIApp) -> None:
        self._handlers = handlers
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = None
        if scope["type"] == "http":
            handler = self._handlers.get((context_of(scope).template, scope["method"]))
        if handler is None:
            await self._otherwise(scope, receive, send)
            return
        reply = await handler(Request(scope, receive, send))
        await reply(scope, receive, send)
