"""Traces as the API tells them, whoever records them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from starlette.types import Scope

from ..context import RequestContext


class OpenSpan(Protocol):
    """The span of a request that is being handled."""

    @property
    def labels(self) -> Mapping[str, str]:
        """What logs say of it: ``trace_id`` and ``span_id``."""
        ...

    def end(self, scope: Scope, context: RequestContext, *, status: int, outcome: str) -> None:
        """The request is over; ``status`` is 0 if its answer did not begin. Never raises, never waits."""
        ...


class Spans(Protocol):
    def begin(self, scope: Scope, context: RequestContext) -> OpenSpan | None:
        """A request came; None if it gets no span."""
        ...
