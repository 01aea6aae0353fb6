"""The slots and label rows that launched batches may still be reading."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .lanes import Mark


class _Read(NamedTuple):
    slots: NDArray[np.int64]
    head_rows: NDArray[np.int64]
    until: Mark


class SlotReaders:
    """For one thread. Batches end in the order in which they were launched."""

    def __init__(self) -> None:
        self._reads: deque[_Read] = deque()

    def add(self, slots: NDArray[np.int64], head_rows: NDArray[np.int64], until: Mark) -> None:
        """A launched batch reads these until ``until`` has passed."""
        self._let_go()
        self._reads.append(_Read(slots, head_rows, until))

    def last_of(self, slots: NDArray[np.int64], head_rows: NDArray[np.int64]) -> Mark | None:
        """The mark after which no batch reads any of these; None if none does now."""
        self._let_go()
        for read in reversed(self._reads):
            if np.isin(slots, read.slots).any() or np.isin(head_rows, read.head_rows).any():
                return read.until
        return None

    def _let_go(self) -> None:
        while self._reads and self._reads[0].until.passed:
            self._reads.popleft()
