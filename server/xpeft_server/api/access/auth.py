"""Who asks, and what a key of theirs allows."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple, Protocol


class Role(StrEnum):
    """``infer``: classify, generate, read profiles; ``admin``: that, and write them; ``operator``: metrics only."""

    INFER = "infer"
    ADMIN = "admin"
    OPERATOR = "operator"


class Principal(NamedTuple):
    """The tenant that a request acts for (empty for an operator), its roles, and the id of its key.

    Without a key, ``key_id`` is None.
    """

    tenant: str
    roles: frozenset[Role]
    key_id: str | None = None


NOBODY: Final = Principal("", frozenset())
EVERYBODY: Final = Principal("default", frozenset(Role))


class Keys(Protocol):
    """Finds the principal behind a secret."""

    @property
    def required(self) -> bool:
        """False where no keys are configured: then everybody acts for the tenant ``default``."""
        ...

    def find(self, secret: bytes) -> Principal | None:
        """The key's principal; None if it is unknown or has expired."""
        ...


class NoKeys:
    """A server on loopback without keys."""

    required = False

    def find(self, secret: bytes) -> Principal | None:
        del secret
        return EVERYBODY


def bearer_secret(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    """The secret of the one ``Authorization: Bearer …`` header, None if there is none or more than one."""
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, secret = found[0].partition(b" ")
    return secret.strip() or None if scheme.lower() == b"bearer" else None
