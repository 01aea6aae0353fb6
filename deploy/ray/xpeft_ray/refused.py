"""An engine's error on its way from one process to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xpeft_server.engine.errors import EngineError, InternalError


@dataclass(frozen=True, slots=True)
class Refused:
    """What stands for an error: it travels as a value, because to be refused is no failure of a replica.

    Args:
        kind: the error's class, by name.
        fields: its attributes, ``message`` among them; plain values.
    """

    kind: str
    fields: Mapping[str, object]

    @classmethod
    def of(cls, error: EngineError) -> Refused:
        return cls(type(error).__name__, dict(vars(error)))

    def error(self) -> EngineError:
        """The error again, with all its attributes; a class that is not known here is an `InternalError`."""
        kinds = {kind.__name__: kind for kind in _below(EngineError)}
        kind = kinds.get(self.kind, InternalError)
        # Not by its constructor: those take different arguments, and all that they do is set attributes.
        error = kind.__new__(kind)
        Exception.__init__(error, self.fields["message"])
        vars(error).update(self.fields)
        return error


def _below(kind: type[EngineError]) -> Iterator[type[EngineError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _below(child)
