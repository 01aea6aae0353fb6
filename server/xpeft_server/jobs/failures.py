"""How a job that was accepted can fail, as the error object in its record."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from xpeft_profiles import BankMismatch, JobKey, PreconditionFailed, ProfileInvalid, StoreUnavailable, TooManyProfiles

from .errors import JobFailure

logger = logging.getLogger(__name__)

INTERRUPTED: Final[Mapping[str, Any]] = {
    "message": "the server that had the job stopped before it was done; send it again",
    "type": "server_error",
    "param": None,
    "code": "interrupted",
}
_KINDS: Final[Mapping[type[Exception], tuple[str, str]]] = {
    PreconditionFailed: ("precondition_error", "precondition_failed"),
    TooManyProfiles: ("overloaded_error", "too_many_profiles"),
    BankMismatch: ("conflict_error", "wrong_bank"),
    ProfileInvalid: ("invalid_request_error", "invalid_profile"),
    StoreUnavailable: ("unavailable_error", "store_unavailable"),
}


def failure_of(error: Exception, job: JobKey) -> dict[str, Any]:
    """``message``, ``type``, ``param`` and ``code``, as in the envelope of the API. A bug of ours is logged."""
    if isinstance(error, JobFailure):
        return _failure(error.message, error.type, error.code, error.param)
    for kind, (type_, code) in _KINDS.items():
        if isinstance(error, kind):
            return _failure(str(error), type_, code, getattr(error, "param", None))
    logger.error("tuning job %s of tenant %s failed unexpectedly", job.id, job.tenant, exc_info=error)
    return _failure("the server failed", "server_error", "internal_error", None)


def _failure(message: str, type_: str, code: str, param: str | None) -> dict[str, Any]:
    return {"message": message, "type": type_, "param": param, "code": code}
