"""What a client is told about an error, and the log of what it is not told."""

from __future__ import annotations

import logging

from starlette.types import Scope

from xpeft_server.engine.errors import DamagedProfile

from .context import context_of
from .errors import ApiError, translate

log = logging.getLogger(__name__)


def problem_of(error: Exception, scope: Scope) -> ApiError:
    """The answer to an error; a bug of ours is logged in full and answered with the request's id alone."""
    problem = translate(error)
    # A damaged profile is not a bug, and has been logged where it was found.
    if problem is not None and (problem.status != 500 or isinstance(error, DamagedProfile)):
        return problem
    context = context_of(scope)
    request_id = context.request_id.decode()
    log.error("request %s: %s %s failed", request_id, scope["method"], context.template, exc_info=error)
    return problem or ApiError(500, "internal_error", f"the server failed; request id {request_id}")
