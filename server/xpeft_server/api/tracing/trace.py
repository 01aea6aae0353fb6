"""The outermost middleware: every request gets an id, a duration, an outcome and an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xpeft_server.engine.metrics import Metrics
from xpeft_server.log_lines import request_labels

from ..context import RequestContext
from ..errors import AnswerBroken, ClientGone, outcome_of, refusal_of
from ..problems import problem_of
from ..replies import error_reply
from .access_log import log_access
from .server_timing import server_timing
from .spans import Spans


class Trace:
    """Adds ``x-request-id`` and times to every answer, counts it, logs and traces it, and answers what was raised.

    Args:
        access_log: whether each request gets a line.
        spans: None where nothing is traced.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, access_log: bool = False, spans: Spans | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(scope)
        labels = request_labels.set(context.labels)
        span = None if self._spans is None else self._spans.begin(scope, context)
        if span is not None:
            context.trace_labels = span.labels
        answer = _Answer(send, context)
        outcome = "server_error"
        try:
            outcome = await self._answered(scope, receive, answer)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            seconds = time.perf_counter() - context.started
            self._metrics.observe_request(context.template, outcome, seconds)
            if self._access_log:
                log_access(scope, context, status=answer.status, outcome=outcome, seconds=seconds)
            if span is not None:
                span.end(scope, context, status=answer.status, outcome=outcome)
            request_labels.reset(labels)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> str:
        """The outcome."""
        try:
            await self._app(scope, receive, answer.send)
        except AnswerBroken:
            return "server_error"
        except ClientGone:
            return "cancelled"
        except Exception as error:
            if answer.status:
                raise
            reason = refusal_of(error)
            if reason is not None:
                self._metrics.refusals[reason].inc()
            await error_reply(problem_of(error, scope))(scope, receive, answer.send)
        return outcome_of(answer.status)


class _Answer:
    """Watches the answer go by: its status, 0 as long as it has not begun."""

    __slots__ = ("_context", "_send", "status")

    def __init__(self, send: Send, context: RequestContext) -> None:
        self._send = send
        self._context = context
        self.status = 0

    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            seconds = time.perf_counter() - self._context.started
            message["headers"] = [
                *message["headers"],
                (b"x-request-id", self._context.request_id),
                (b"x-total-time", b"%.6f" % seconds),
            ]
            if self._context.journey.stages:
                message["headers"].append((b"server-timing", server_timing(self._context.journey.stages)))
        return self._send(message)
