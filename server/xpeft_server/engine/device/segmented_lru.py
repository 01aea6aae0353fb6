"""An LRU order in which what was used once is evicted before what was used again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_PROVEN: Final = 0.8


class SegmentedLru(Generic[T]):
    """Values by name, in order of eviction.

    A name that was used once is on trial; used again, it is proven (each step of a generation is a use). Names on trial
    are evicted first, the least recently used of them before the others. At most four fifths of the capacity are
    proven; beyond that the least recently used proven name goes back on trial. So a flood of names that are used once
    passes through a fifth of the capacity and evicts nothing else.
    Source: segmented LRU (Karedla, Love and Wherry, 1994, "Caching strategies to improve disk system performance").

    Args:
        capacity: most values; the caller makes room before it adds one.
    """

    def __init__(self, capacity: int) -> None:
        self._most_proven = int(_PROVEN * capacity)
        self._trial: OrderedDict[str, T] = OrderedDict()
        self._proven: OrderedDict[str, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._trial) + len(self._proven)

    def __iter__(self) -> Iterator[str]:
        """Names in order of eviction."""
        yield from self._trial
        yield from self._proven

    def get(self, name: str) -> T | None:
        """Look up without counting a use."""
        return self._proven.get(name, self._trial.get(name))

    def add(self, name: str, value: T) -> None:
        """Add a new name; this is its first use."""
        self._trial[name] = value

    def use(self, name: str) -> None:
        """Count a use of a name that is there."""
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
