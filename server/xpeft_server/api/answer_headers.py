"""The headers of answers, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Headers = Mapping[str, dict[str, Any]]
_TEXT: Final = {"type": "string"}
_SECONDS: Final = {"type": "number", "minimum": 0}


def _header(description: str, schema: Mapping[str, Any] = _TEXT, *, always: bool = True) -> dict[str, Any]:
    return {"schema": dict(schema), "description": description, "required": always}


_EVERYWHERE: Final[Headers] = {
    "x-request-id": _header("the client's own if it sent one of 1 to 128 letters, digits, . _ -"),
    "x-total-time": _header("seconds from the request's headers to the answer", _SECONDS, always=False),
    "Server-Timing": _header("milliseconds of each stage; only if a model worked on it", always=False),
}
_RETRY_AFTER: Final[Headers] = {
    "Retry-After": _header("seconds to wait before the request is sent again", {"type": "integer", "minimum": 1})
}
_OF_STATUS: Final[Mapping[int, Headers]] = {
    401: {"WWW-Authenticate": _header("how to send a key")},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}

VERSION: Final[Headers] = {"ETag": _header("the profile's version in double quotes")}
JOB: Final[Headers] = {"Location": _header("the job's path")}
_UNVERIFIED: Final[Headers] = {
    "x-profile-unverified": _header(
        "the store could not be asked whether the version is still current",
        {"type": "string", "enum": ["true"]},
        always=False,
    )
}
CLASSIFIED: Final[Headers] = {
    "x-profile-version": _header("the version that answered"),
    "x-queue-time": _header("seconds in the queue", _SECONDS),
    "x-inference-time": _header("seconds in the model", _SECONDS),
    **_UNVERIFIED,
}
GENERATED: Final[Headers] = {
    "x-profile-version": _header(
        "the version that answered; not of the bare model, nor of a stream that began before its text", always=False
    ),
    "x-queue-time": _header("seconds in the queue; not of a stream that began before its text", _SECONDS, always=False),
    "x-inference-time": _header("seconds in the model; not of streams", _SECONDS, always=False),
    **_UNVERIFIED,
}


def headers_of_status(status: int) -> Headers:
    """Those of every answer with this status."""
    return {**_EVERYWHERE, **_OF_STATUS.get(status, {})}
