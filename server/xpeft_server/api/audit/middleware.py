"""What the audit log is told of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xpeft_profiles import PreconditionFailed, ProfileInvalid, check_name
from xpeft_server.engine.errors import Overloaded

from ..access.table import CANCEL, JOBS_PREFIX, METHOD_LENGTH, PROFILE, PROFILES_PREFIX, TUNE, TUNE_SUFFIX
from ..client_address import shown_client
from ..context import Change, RequestContext, context_of
from ..errors import ApiError, ClientGone, translate
from .log import AuditLog

# Every write: what the table of access opens to admins alone.
ACTIONS: Final[Mapping[tuple[str, str], str]] = {
    ("PUT", PROFILE): "profile.put",
    ("DELETE", PROFILE): "profile.delete",
    ("POST", TUNE): "job.submit",
    ("POST", CANCEL): "job.cancel",
}
_REFUSED: Final = (401, 403)


class Audit:
    """Tells the audit log of every write, however it ended, and of every request that was refused by 401 or 403.

    No entry has anything of a body, a query or a header but the request's id, nor a path that is no profile's or
    job's name.
    """

    def __init__(self, app: ASGIApp, *, log: AuditLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        action = ACTIONS.get((scope["method"], context_of(scope).template))
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch if action else send)
        except (Exception, asyncio.CancelledError) as error:
            self._tell_failure(scope, action, error)
            raise
        if action:
            self._log.write(_entry(scope, action, status, None))

    def _tell_failure(self, scope: Scope, action: str | None, error: BaseException) -> None:
        # In a flood of these nothing is to be spent on what is not told.
        if action is None and isinstance(error, Overloaded):
            return
        status, code = _end_of(error)
        if status in _REFUSED:
            template = context_of(scope).template
            entry = _entry(scope, action or f"{scope['method'][:METHOD_LENGTH]} {template}", status, code)
            self._log.refused(status, entry)
        elif action:
            if isinstance(error, PreconditionFailed):
                version = error.current_version
                context_of(scope).change = Change(version_before=version, version_after=version)
            self._log.write(_entry(scope, action, status, code))


def _end_of(error: BaseException) -> tuple[int | None, str]:
    """Status and code; no status where nobody is left to be answered."""
    if isinstance(error, ClientGone | asyncio.CancelledError):
        return None, "cancelled"
    problem = translate(error) if isinstance(error, Exception) else None
    problem = problem or ApiError(500, "internal_error", "")
    return problem.status, problem.code


def _entry(scope: Scope, action: str, status: int | None, code: str | None) -> dict[str, object]:
    context = context_of(scope)
    principal, change = context.principal, context.change or Change()
    profile, job = _named(scope["path"], context) if principal.tenant else (None, None)
    return {
        "request_id": context.request_id.decode(),
        "key": principal.key_id,
        "tenant": principal.tenant or None,
        "role": next(iter(principal.roles)) if len(principal.roles) == 1 else None,
        "client": shown_client(scope.get("client")),
        "action": action,
        "profile": change.profile or profile,
        "job": change.job or job,
        "version_before": change.version_before,
        "version_after": change.version_after,
        "status": status,
        "code": code,
    }


def _named(path: str, context: RequestContext) -> tuple[str | None, str | None]:
    """The profile and the job in the path, where they are names."""
    if context.template in (PROFILE, TUNE):
        return _name(path.removeprefix(PROFILES_PREFIX).removesuffix(TUNE_SUFFIX)), None
    if context.template == CANCEL:
        return None, _name(path.removeprefix(JOBS_PREFIX).partition("/")[0])
    return None, None


def _name(text: str) -> str | None:
    try:
        check_name(text)
    except ProfileInvalid:
        return None
    return text
