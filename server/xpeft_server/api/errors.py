"""The one table that turns what went wrong into an answer, and the one envelope that it travels in.

``{"error": {"message", "type", "param", "code"}}``: ``type`` follows from the status, ``code`` is the stable word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from xpeft_profiles import (
    BankMismatch,
    CursorInvalid,
    PreconditionFailed,
    ProfileInvalid,
    ProfileStoreError,
    RecordDamaged,
    StoreUnavailable,
    TooManyJobs,
    TooManyProfiles,
)
from xpeft_server.engine.errors import (
    DamagedProfile,
    DoesNotGenerate,
    EngineError,
    InvalidInput,
    LimitReached,
    NoChatTemplate,
    Overloaded,
    ProfileHasNoHead,
    ProfileNotFound,
    Unavailable,
    WrongBank,
)
from xpeft_server.jobs.errors import InvalidTuning, JobFinished, JobNotFound, JobsError, TuningOff

NO_HEADERS: Final[Mapping[str, str]] = {}
_RETRY_AFTER: Final = 1.0


class ApiError(Exception):
    """A request is answered with an error: status, stable code, message, and the field that it is about."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers

    def encoded_headers(self) -> list[tuple[bytes, bytes]]:
        """``headers`` as ASGI has them."""
        return [(name.lower().encode(), value.encode("latin-1")) for name, value in self.headers.items()]

    def envelope(self) -> bytes:
        error = {
            "message": self.message,
            "type": error_type(self.status),
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": error})


class ClientGone(Exception):
    """The client closed its connection before the answer; there is nobody to answer."""


class AnswerBroken(Exception):
    """An answer failed after it had begun; its client was told in the answer itself."""


# An error that is not here, nor a parent of it, is our own bug: 500.
_STATUS: Final[Mapping[type, int]] = {
    InvalidInput: 422,
    NoChatTemplate: 400,
    DoesNotGenerate: 400,
    ProfileNotFound: 404,
    ProfileHasNoHead: 422,
    WrongBank: 409,
    DamagedProfile: 500,
    Overloaded: 429,
    LimitReached: 429,
    Unavailable: 503,
    ProfileInvalid: 422,
    BankMismatch: 409,
    RecordDamaged: 500,
    PreconditionFailed: 412,
    CursorInvalid: 422,
    StoreUnavailable: 503,
    TuningOff: 403,
    InvalidTuning: 422,
    TooManyProfiles: 429,
    TooManyJobs: 429,
    JobNotFound: 404,
    JobFinished: 409,
}

_QUOTAS: Final[Mapping[type[Exception], str]] = {TooManyProfiles: "profiles", TooManyJobs: "tuning_jobs"}

_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    412: "precondition_error",
    429: "overloaded_error",
    503: "unavailable_error",
}


def error_type(status: int) -> str:
    """The envelope's ``type`` of a status."""
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")


def translate(error: Exception) -> ApiError | None:
    """The answer to an error of the engine, the store, the framework or the API; ``None`` for a bug of ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return _translate_framework(error)
    if isinstance(error, RequestValidationError):
        return ApiError(422, "invalid_request", "; ".join(str(item["msg"]) for item in error.errors()))
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), None)
    if status is None or not isinstance(error, EngineError | JobsError | ProfileStoreError):
        return None
    return ApiError(
        status,
        error.code,
        error.message,
        param=getattr(error, "param", None),
        headers=_retry_after(error) if status in (429, 503) else NO_HEADERS,
    )


def outcome_of(status: int) -> str:
    """The ``outcome`` of ``requests_total`` for an answer with this status."""
    if status < 400:
        return "ok"
    if status == 429:
        return "overloaded"
    return "client_error" if status < 500 else "server_error"


def refusal_of(error: Exception) -> str | None:
    """The ``reason`` of ``refusals_total`` for what is answered with 429; None for every other error."""
    if isinstance(error, Overloaded):
        return error.reason
    return next((reason for kind, reason in _QUOTAS.items() if isinstance(error, kind)), None)


def _translate_framework(error: HTTPException) -> ApiError:
    phrase = HTTPStatus(error.status_code).phrase
    return ApiError(
        error.status_code,
        phrase.lower().replace(" ", "_"),
        error.detail,
        headers=error.headers or NO_HEADERS,
    )


def _retry_after(error: Exception) -> dict[str, str]:
    seconds = float(getattr(error, "retry_after", _RETRY_AFTER))
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
