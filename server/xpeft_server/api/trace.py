"""The outermost middleware: every request gets an id, a duration, an outcome and an answer."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xpeft_server.engine.metrics import Metrics

from .context import RequestContext
from .errors import AnswerBroken, ClientGone, outcome_of
from .problems import problem_of
from .replies import error_reply


class Trace:
    """Adds ``x-request-id`` and ``x-total-time`` to every answer, counts it, and answers what was raised."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(scope)
        answer = _Answer(send, context)
        outcome = "server_error"
        try:
            try:
                await self._app(scope, receive, answer.send)
            except (AnswerBroken, ClientGone, asyncio.CancelledError):
                raise
            except Exception as error:
                if answer.status:
                    raise
                await error_reply(problem_of(error, scope))(scope, receive, answer.send)
            outcome = outcome_of(answer.status)
        except AnswerBroken:
            outcome = "server_error"
        except ClientGone:
            outcome = "cancelled"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.observe_request(context.template, outcome, time.perf_counter() - context.started)


class _Answer:
    """Watches the answer go by: its status, 0 as long as it has not begun."""

    __slots__ = ("_context", "_send", "status")

    def __init__(self, send: Send, context: RequestContext) -> None:
        self._send = send
        self._context = context
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            seconds = time.perf_counter() - self._context.started
            message["headers"] = [
                *message["headers"],
                (b"x-request-id", self._context.request_id),
                (b"x-total-time", b"%.6f" % seconds),
            ]
        await self._send(message)
