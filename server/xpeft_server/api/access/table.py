"""Which role may call what. No route answers a path or method that is not in this table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from .auth import Role

PROFILES_PREFIX: Final = "/v1/profiles/"
PROFILE: Final = "/v1/profiles/{name}"
TUNE: Final = "/v1/profiles/{name}/tune"
TUNE_SUFFIX: Final = "/tune"
JOBS_PREFIX: Final = "/v1/jobs/"
JOB: Final = "/v1/jobs/{id}"
CANCEL: Final = "/v1/jobs/{id}/cancel"
MODELS_PREFIX: Final = "/v1/models/"
MODEL: Final = "/v1/models/{name}"
UNMATCHED: Final = "unmatched"
METHOD_LENGTH: Final = 32  # characters of a method that are logged, or told to its client

_EVERY_KEY: Final = frozenset(Role)
_READ: Final = frozenset({Role.INFER, Role.ADMIN})
_WRITE: Final = frozenset({Role.ADMIN})
_OPERATE: Final = frozenset({Role.OPERATOR})

Methods = Mapping[str, frozenset[Role]]


def _readable_by(roles: frozenset[Role]) -> Methods:
    return {"GET": roles, "HEAD": roles}


ACCESS: Final[Mapping[str, Methods]] = MappingProxyType(
    {
        "/v1/classify": {"POST": _READ},
        "/v1/generate": {"POST": _READ},
        "/v1/completions": {"POST": _READ},
        "/v1/chat/completions": {"POST": _READ},
        "/v1/models": _readable_by(_READ),
        MODEL: _readable_by(_READ),
        "/v1/profiles": _readable_by(_READ),
        PROFILE: {**_readable_by(_READ), "PUT": _WRITE, "DELETE": _WRITE},
        TUNE: {"POST": _WRITE},
        "/v1/jobs": _readable_by(_READ),
        JOB: _readable_by(_READ),
        CANCEL: {"POST": _WRITE},
        "/health": _readable_by(_EVERY_KEY),
        "/ready": _readable_by(_EVERY_KEY),
        "/info": _readable_by(_EVERY_KEY),
        "/metrics": _readable_by(_OPERATE),
        "/openapi.json": _readable_by(_EVERY_KEY),
    }
)

# Answered without a key.
PUBLIC: Final = frozenset({"/health", "/ready"})
# Answered while the server drains.
WHILE_DRAINING: Final = PUBLIC | {"/metrics"}


def template_of(path: str) -> str:
    """The route's template for a decoded path, ``unmatched`` where there is none."""
    if path in ACCESS:
        return path
    if path.startswith(PROFILES_PREFIX):
        name = path.removeprefix(PROFILES_PREFIX)
        return TUNE if name.endswith(TUNE_SUFFIX) else PROFILE
    if path.startswith(MODELS_PREFIX):
        return MODEL
    if path.startswith(JOBS_PREFIX):
        id_, cancel, rest = path.removeprefix(JOBS_PREFIX).partition("/cancel")
        if id_ and "/" not in id_ and not rest:
            return CANCEL if cancel else JOB
    return UNMATCHED
