"""An error on its way from one process to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from xpeft_profiles import ProfileStoreError
from xpeft_server.engine.errors import EngineError, InternalError
from xpeft_server.jobs.errors import JobsError

DomainError = EngineError | JobsError | ProfileStoreError
"""Errors that are meant for the caller, not bugs of ours."""

DOMAIN_ERRORS: Final[tuple[type[DomainError], ...]] = (EngineError, JobsError, ProfileStoreError)


@dataclass(frozen=True, slots=True)
class ErrorValue:
    """An error as a value that can leave its process: a refused request is no failure of that process.

    Args:
        kind: the error's class, by name; no two classes of the trees have the same.
        fields: its attributes, ``message`` among them; plain values.
    """

    kind: str
    fields: Mapping[str, object]

    @classmethod
    def of(cls, error: DomainError) -> ErrorValue:
        return cls(type(error).__name__, dict(vars(error)))

    def error(self) -> DomainError:
        """The error again, with all its attributes; an `InternalError` if its class is not known here."""
        kind = _kinds().get(self.kind, InternalError)
        # Without its constructor: constructors take different arguments, and all that they do is set attributes.
        error: DomainError = kind.__new__(kind)
        Exception.__init__(error, self.fields["message"])
        vars(error).update(self.fields)
        return error


@cache
def _kinds() -> Mapping[str, type[DomainError]]:
    """By name. Cached, because a flood is answered with errors."""
    return {kind.__name__: kind for root in DOMAIN_ERRORS for kind in subclasses(root)}


def subclasses(kind: type[DomainError]) -> Iterator[type[DomainError]]:
    """The class itself and all that derive from it."""
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)
