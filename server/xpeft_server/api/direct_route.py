"""A FastAPI route whose endpoint takes the request and returns an ASGI answer.

FastAPI documents it and finds it; parsing and dependencies are not FastAPI's, because bodies here have limits of
their own and one error envelope, and because they cost more than all of our work on a small request.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import Receive, Scope, Send


class DirectRoute(APIRoute):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A path is matched to its last character: Starlette's "$" would let "/metrics\\n" pass for "/metrics".
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z", re.DOTALL)
        endpoint = self.endpoint

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            reply = await endpoint(Request(scope, receive, send))
            await reply(scope, receive, send)

        self.app = answer
