"""The access log: a line for each request that was answered or given up."""

from __future__ import annotations

import logging
from typing import Final

from starlette.types import Scope

from .context import RequestContext

ACCESS_LOGGER: Final = "xpeft.access"
_METHOD: Final = 32

_logger = logging.getLogger(ACCESS_LOGGER)


def log_access(scope: Scope, context: RequestContext, *, status: int, outcome: str, seconds: float) -> None:
    """At info. Nothing of a body, a query or a header is in it, nor a path that is no route's.

    Args:
        status: 0 if the answer did not begin.
    """
    method, client, journey = scope["method"][:_METHOD], scope.get("client"), context.journey
    fields: dict[str, object] = {
        "method": method,
        "route": context.template,
        "status": status or None,
        "outcome": outcome,
        "seconds": round(seconds, 6),
        "client": f"{client[0]}:{client[1]}" if client else None,
        "profile": context.profile,
        "profile_version": journey.profile_version,
    }
    if journey.prompt_tokens:
        fields |= {"prompt_tokens": journey.prompt_tokens, "completion_tokens": journey.completion_tokens}
    known = {name: value for name, value in fields.items() if value is not None}
    _logger.info("%s %s %s", method, context.template, status or outcome, extra={"fields": known})
