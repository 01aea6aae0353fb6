"""The access log: a line for each request that was answered or given up."""

from __future__ import annotations

import logging
from typing import Final

from starlette.types import Scope

from ..access.table import METHOD_LENGTH, UNMATCHED
from ..client_address import shown_client
from ..context import RequestContext
from ..errors import ApiError

ACCESS_LOGGER: Final = "xpeft.access"

_logger = logging.getLogger(ACCESS_LOGGER)


def log_access(scope: Scope, context: RequestContext, *, status: int, outcome: str, seconds: float) -> None:
    """At info. Nothing of a body, a query or a header is in it, nor a path that is no route's.

    Args:
        status: 0 if the answer did not begin.
    """
    method, journey = scope["method"][:METHOD_LENGTH], context.journey
    fields: dict[str, object] = {
        "method": method,
        "route": context.template,
        "status": status or None,
        "outcome": outcome,
        "seconds": round(seconds, 6),
        "client": shown_client(scope.get("client")),
        "profile": context.profile,
        "profile_version": journey.profile_version,
    }
    if journey.prompt_tokens:
        fields |= {"prompt_tokens": journey.prompt_tokens, "completion_tokens": journey.completion_tokens}
    _log(fields, method, context.template, status or outcome)


def log_unparsed(error: ApiError, *, request_id: str, outcome: str, client: tuple[str, int] | None) -> None:
    """As `log_access`, of what could not be read as a request, and so has no method and no path."""
    fields: dict[str, object] = {
        "request_id": request_id,
        "route": UNMATCHED,
        "status": error.status,
        "code": error.code,
        "outcome": outcome,
        "client": shown_client(client),
    }
    _log(fields, UNMATCHED, error.status)


def _log(fields: dict[str, object], *words: object) -> None:
    known = {name: value for name, value in fields.items() if value is not None}
    _logger.info(" ".join(map(str, words)), extra={"fields": known})
