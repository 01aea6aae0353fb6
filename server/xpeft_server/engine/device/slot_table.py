"""Which profile version sits in which slot. Owned by the device thread."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..metrics import Metrics
from ..profiles.cache import CachedProfile
from .segmented_lru import SegmentedLru


class Placement(NamedTuple):
    """A slot and the label rows ``[C]`` of the version's own head, empty without one."""

    slot: int
    head_rows: NDArray[np.int64]


class SlotTable:
    """Places versions in slots, and evicts the least recently used (see `SegmentedLru`) that this batch does not need.

    Slots are looked up by version, a content hash, so equal profiles of different tenants share one.

    Args:
        slots: S.
        head_rows: label rows for own heads; handed out one by one, so they never fragment.
    """

    def __init__(self, *, slots: int, head_rows: int, metrics: Metrics) -> None:
        self._free_slots = list(range(slots - 1, -1, -1))
        self._free_rows = list(range(head_rows - 1, -1, -1))
        self._most_rows = head_rows
        self._placed: SegmentedLru[Placement] = SegmentedLru(slots)
        self._pinned: set[str] = set()
        self._asked: set[str] = set()  # counted as a hit or a miss of this batch
        self._metrics = metrics

    def begin_batch(self) -> None:
        """Unpin everything."""
        self._pinned.clear()
        self._asked.clear()

    def may_hold(self, profile: CachedProfile) -> bool:
        """Whether there are enough label rows for its head at all."""
        return _labels(profile) <= self._most_rows

    def pin(self, version: str) -> Placement | None:
        """Pin it for this batch if it is resident, without counting a hit or a miss."""
        found = self._placed.get(version)
        if found is not None and version not in self._pinned:
            self._placed.use(version)
            self._pinned.add(version)
        return found

    def place(self, profile: CachedProfile) -> tuple[Placement, bool] | None:
        """Pin the version for this batch, in a new slot if it is not resident. Counts a hit or a miss once a batch.

        Returns: its placement, and whether the slot has to be filled; None if there is no room.
        """
        version = profile.version
        found = self.pin(version)
        if found is not None:
            self._metrics.cache_hits["device"].inc(version not in self._asked)
            self._asked.add(version)
            return found, False
        rows = _labels(profile)
        if not self.may_hold(profile) or not self._make_room(rows):
            return None
        taken = [self._free_rows.pop() for _ in range(rows)]
        placement = Placement(self._free_slots.pop(), np.array(taken, np.int64))
        self._placed.add(version, placement)
        self._pinned.add(version)
        self._asked.add(version)
        self._metrics.cache_misses["device"].inc()
        self._metrics.profiles_resident["device"].set(len(self._placed))
        return placement, True

    def forget(self, versions: Iterable[str]) -> None:
        """Release slots whose fill failed, or never happened."""
        for version in versions:
            self._release(version)

    def _make_room(self, rows: int) -> bool:
        while not self._free_slots or len(self._free_rows) < rows:
            oldest = next((version for version in self._placed if version not in self._pinned), None)
            if oldest is None:
                return False
            self._release(oldest)
            self._metrics.cache_evictions["device"].inc()
        return True

    def _release(self, version: str) -> None:
        placement = self._placed.pop(version)
        if placement is not None:
            self._free_slots.append(placement.slot)
            self._free_rows.extend(placement.head_rows.tolist())
            self._pinned.discard(version)
            self._metrics.profiles_resident["device"].set(len(self._placed))


def _labels(profile: CachedProfile) -> int:
    """Number of labels of its own head."""
    head = profile.profile.head_weight
    return 0 if head is None else head.shape[0]
