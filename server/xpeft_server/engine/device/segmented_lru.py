"""Who leaves first where there is no room for all: those that were needed once, before those that were needed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_PROVEN: Final = 0.8


class SegmentedLru(Generic[T]):
    """Values by name, in the order in which they should leave.

    What was used once is on trial; used again, it is proven, and each step of a generation is a use. The trial's least
    recently used leaves first. At most four fifths of the capacity are proven; whoever is too much there goes on trial
    again. A crowd of names that are used once each therefore passes through a fifth of the room and leaves the rest
    alone.
    Source: segmented LRU (Karedla, Love and Wherry, 1994, "Caching strategies to improve disk system performance").

    Args:
        capacity: values that there will be at most; whoever adds one sees to it.
    """

    def __init__(self, capacity: int) -> None:
        self._most_proven = int(_PROVEN * capacity)
        self._trial: OrderedDict[str, T] = OrderedDict()
        self._proven: OrderedDict[str, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._trial) + len(self._proven)

    def __iter__(self) -> Iterator[str]:
        """Who should leave, first to last."""
        yield from self._trial
        yield from self._proven

    def get(self, name: str) -> T | None:
        """Without counting as a use."""
        return self._proven.get(name, self._trial.get(name))

    def add(self, name: str, value: T) -> None:
        """A name that is not there, used once."""
        self._trial[name] = value

    def use(self, name: str) -> None:
        """A name that is there has been used again."""
        if name in self._proven:
            self._proven.move_to_end(name)
            return
        self._proven[name] = self._trial.pop(name)
        if len(self._proven) > self._most_proven:
            oldest, value = self._proven.popitem(last=False)
            self._trial[oldest] = value

    def pop(self, name: str) -> T | None:
        """None if it is not there."""
        return self._trial.pop(name, None) if name in self._trial else self._proven.pop(name, None)
