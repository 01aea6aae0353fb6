"""The error object in the record of a failed job."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from xpeft_profiles import (
    BankMismatch,
    JobKey,
    PreconditionFailed,
    ProfileInvalid,
    ProfileStoreError,
    StoreUnavailable,
    TooManyProfiles,
)

from .errors import JobFailure

logger = logging.getLogger(__name__)

INTERRUPTED: Final[Mapping[str, Any]] = {
    "message": "the server that had the job stopped before it was done; send it again",
    "type": "server_error",
    "param": None,
    "code": "interrupted",
}
_TYPES: Final[Mapping[type[ProfileStoreError], str]] = {
    PreconditionFailed: "precondition_error",
    TooManyProfiles: "overloaded_error",
    BankMismatch: "conflict_error",
    ProfileInvalid: "invalid_request_error",
    StoreUnavailable: "unavailable_error",
}


def failure_of(error: Exception, job: JobKey) -> dict[str, Any]:
    """``message``, ``type``, ``param`` and ``code``, as in the envelope of the API. A bug of ours is logged."""
    if isinstance(error, JobFailure):
        return _failure(error.message, error.type, error.code, error.param)
    for kind, type_ in _TYPES.items():
        if isinstance(error, kind):
            return _failure(error.message, type_, error.code, getattr(error, "param", None))
    logger.error("tuning job %s of tenant %s failed unexpectedly", job.id, job.tenant, exc_info=error)
    return _failure("the server failed", "server_error", "internal_error", None)


def _failure(message: str, type_: str, code: str, param: str | None) -> dict[str, Any]:
    return {"message": message, "type": type_, "param": param, "code": code}
