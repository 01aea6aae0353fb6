"""What is known of a request before any route has seen it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from starlette.types import Scope

from xpeft_server.engine.requests import Journey

from .access.auth import NOBODY, Principal
from .access.table import template_of
from .ids import new_id

_KEY: Final = "xpeft"
_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Change(NamedTuple):
    """What a write changed, for the audit log. A version is None if it is unknown, or there is none."""

    profile: str | None = None
    job: str | None = None
    version_before: str | None = None
    version_after: str | None = None


class RequestContext:
    """One request: its id, its path's template, when it began (``perf_counter`` seconds), who asks, what it changed.

    Attributes:
        profile: the profile that it is about, if it names one.
        journey: what the engine notes of it.
        trace_labels: of its span, if it has one.
    """

    __slots__ = ("change", "journey", "principal", "profile", "request_id", "started", "template", "trace_labels")

    def __init__(self, scope: Scope) -> None:
        self.started = time.perf_counter()
        self.request_id = _request_id(scope["headers"])
        self.template = template_of(scope["path"])
        self.principal: Principal = NOBODY
        self.change: Change | None = None
        self.profile: str | None = None
        self.journey = Journey(self.request_id.decode())
        self.trace_labels: Mapping[str, str] = _NO_LABELS
        scope[_KEY] = self

    def labels(self) -> dict[str, str]:
        """What logs say of it."""
        labels = {"request_id": self.journey.id, "tenant": self.principal.tenant, **self.trace_labels}
        return {name: value for name, value in labels.items() if value}


def context_of(scope: Scope) -> RequestContext:
    """The context that the outermost middleware put there."""
    context: RequestContext = scope[_KEY]
    return context


def labels_of(scope: Mapping[str, object]) -> dict[str, str]:
    """What logs say of a request that may not have come to the outermost middleware; empty then."""
    context = scope.get(_KEY)
    return context.labels() if isinstance(context, RequestContext) else {}


def _request_id(headers: list[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return new_id().encode()
