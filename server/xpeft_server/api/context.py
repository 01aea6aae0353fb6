"""What the server knows of the request that it is answering, before any route has seen it."""

from __future__ import annotations

import re
import time
from typing import Final, NamedTuple

from starlette.types import Scope

from .access import template_of
from .auth import NOBODY, Principal
from .ids import new_id

_KEY: Final = "xpeft"
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Change(NamedTuple):
    """What a write has to tell beyond its path. Versions are None where they are not known, or there is none."""

    profile: str | None = None
    job: str | None = None
    version_before: str | None = None
    version_after: str | None = None


class RequestContext:
    """One request: its id, its path's template, when it began (``perf_counter`` seconds), who asks, what it changed."""

    __slots__ = ("change", "principal", "request_id", "started", "template")

    def __init__(self, scope: Scope) -> None:
        self.started = time.perf_counter()
        self.request_id = _request_id(scope["headers"])
        self.template = template_of(scope["path"])
        self.principal: Principal = NOBODY
        self.change: Change | None = None
        scope[_KEY] = self


def context_of(scope: Scope) -> RequestContext:
    """The context that the outermost middleware put there."""
    context: RequestContext = scope[_KEY]
    return context


def _request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return new_id().encode()
