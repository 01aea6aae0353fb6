"""What the log has been told already, so that it is told once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T", bound=Hashable)
_MOST: Final = 10_000
"""Things that are remembered; beyond that all are forgotten and may be told again."""


class ToldOnce(Generic[T]):
    """May be used from any thread; who asks at the same moment as another may be told, too, that a thing is new."""

    def __init__(self) -> None:
        self._told: set[T] = set()

    def is_new(self, thing: T) -> bool:
        """Whether nobody has asked about it before."""
        if thing in self._told:
            return False
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told.add(thing)
        return True
