"""Which role may call what. A path or method that is not in this table is answered by no route."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from .auth import Role

PROFILES_PREFIX: Final = "/v1/profiles/"
PROFILE: Final = "/v1/profiles/{name}"
UNMATCHED: Final = "unmatched"

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
        "/v1/profiles": _readable_by(_READ),
        PROFILE: {**_readable_by(_READ), "PUT": _WRITE, "DELETE": _WRITE},
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
    return PROFILE if path.startswith(PROFILES_PREFIX) else UNMATCHED
