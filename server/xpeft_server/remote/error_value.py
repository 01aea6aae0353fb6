"""An error on its way from one process to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from xpeft_profiles import ProfileStoreError
from xpeft_server.engine.errors import EngineError, InternalError
from xpeft_server.jobs.errors import JobsError

Telling = EngineError | JobsError | ProfileStoreError
"""Errors with words for whoever asked."""

TELLING: Final[tuple[type[Telling], ...]] = (EngineError, JobsError, ProfileStoreError)


@dataclass(frozen=True, slots=True)
class ErrorValue:
    """What stands for an error: it travels as a value, because to be refused is no failure of a process.

    Args:
        kind: the error's class, by name; no two classes of the trees have the same.
        fields: its attributes, ``message`` among them; plain values.
    """

    kind: str
    fields: Mapping[str, object]

    @classmethod
    def of(cls, error: Telling) -> ErrorValue:
        return cls(type(error).__name__, dict(vars(error)))

    def error(self) -> Telling:
        """The error again, with all its attributes; a class that is not known here is an `InternalError`."""
        kind = _kinds().get(self.kind, InternalError)
        # Not by its constructor: those take different arguments, and all that they do is set attributes.
        error: Telling = kind.__new__(kind)
        Exception.__init__(error, self.fields["message"])
        vars(error).update(self.fields)
        return error


@cache
def _kinds() -> Mapping[str, type[Telling]]:
    """By name. Looked up once: a flood is answered with errors."""
    return {kind.__name__: kind for root in TELLING for kind in below(root)}


def below(kind: type[Telling]) -> Iterator[type[Telling]]:
    """The class and all that are derived from it."""
    yield kind
    for child in kind.__subclasses__():
        yield from below(child)
