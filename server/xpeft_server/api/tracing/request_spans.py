"""A request as OpenTelemetry's spans: the server's own, and below it a child for each stage of the engine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from xpeft_server.engine.requests import Stage
from xpeft_server.log_lines import field_without_secrets

from ..access.table import UNMATCHED, WHILE_DRAINING
from ..context import RequestContext

MOST_STAGES: Final = 128
"""Of one request: one of very many texts takes very many batches."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "QUERY"})
_OTHER: Final = "_OTHER"
_LONGEST_HEADER: Final = 512  # that W3C Trace Context asks anybody to keep
_LONGEST_PATH: Final = 256  # characters; a name has 128 at most
_PROPAGATOR: Final = TraceContextTextMapPropagator()

Headers = list[tuple[bytes, bytes]]


class RequestSpans:
    """Begins the span of every request but those of probes and scrapes, below the client's span if it names one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, scope: Scope, context: RequestContext) -> RequestSpan | None:
        if context.template in WHILE_DRAINING:
            return None
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        name = "HTTP" if method is _OTHER else method
        route = {} if context.template == UNMATCHED else {"http.route": context.template}
        span = self._tracer.start_span(
            " ".join((name, *route.values())),
            context=_PROPAGATOR.extract(scope["headers"], getter=_GETTER),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "url.scheme": scope.get("scheme", "http"), **route},
        )
        return RequestSpan(self._tracer, span)


class RequestSpan:
    """See `OpenSpan`."""

    __slots__ = ("_began", "_clock", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._began = time.time_ns()
        self._clock = time.monotonic()

    @property
    def labels(self) -> Mapping[str, str]:
        spoken = self._span.get_span_context()
        if not spoken.is_valid:
            return {}
        return {"trace_id": f"{spoken.trace_id:032x}", "span_id": f"{spoken.span_id:016x}"}

    def end(self, scope: Scope, context: RequestContext, *, status: int, outcome: str) -> None:
        if self._span.is_recording():
            self._span.set_attributes(_attributes(scope, context, status, outcome))
            if outcome == "server_error":
                self._span.set_status(Status(StatusCode.ERROR))
                self._span.set_attribute("error.type", str(status) if status >= 500 else "answer_broken")
            self._tell(context.journey.stages)
        self._span.end()

    def _tell(self, stages: list[Stage]) -> None:
        if len(stages) > MOST_STAGES:
            self._span.set_attribute("xpeft.stages_left_out", len(stages) - MOST_STAGES)
        parent = set_span_in_context(self._span)
        for name, began, ended, facts in stages[:MOST_STAGES]:
            attributes = {f"xpeft.{fact}": value for fact, value in facts.items()}
            child = self._tracer.start_span(name, parent, attributes=attributes, start_time=self._wall(began))
            child.end(self._wall(ended))

    def _wall(self, monotonic: float) -> int:
        """Unix nanoseconds."""
        return self._began + int((monotonic - self._clock) * 1e9)


def _attributes(scope: Scope, context: RequestContext, status: int, outcome: str) -> dict[str, str | int]:
    journey, client = context.journey, scope.get("client")
    known = {
        "url.path": None if context.template == UNMATCHED else scope["path"][:_LONGEST_PATH],
        "http.response.status_code": status,
        "client.address": client[0] if client else None,
        "xpeft.request_id": journey.id,
        "xpeft.outcome": outcome,
        "xpeft.tenant": context.principal.tenant,
        "xpeft.profile": context.profile,
        "xpeft.profile_version": journey.profile_version,
        "gen_ai.usage.input_tokens": journey.prompt_tokens,
        "gen_ai.usage.output_tokens": journey.completion_tokens,
    }
    return {name: field_without_secrets(value) for name, value in known.items() if value}


class _HeaderGetter(Getter[Headers]):
    """Only what says which trace it is; what is longer than it may be is as good as not sent."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        name = key.encode()
        found = [value.decode("latin-1") for each, value in carrier if each == name]
        return found if found and sum(map(len, found)) <= _LONGEST_HEADER else None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_GETTER: Final = _HeaderGetter()
