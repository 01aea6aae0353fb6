"""Ranges whose lengths are powers of two, and that begin at multiples of their lengths (Knowlton 1965)."""

from __future__ import annotations

from collections import Counter


class BuddyRanges:
    """Cuts ``[0, total)``; two free halves of a range become one again.

    Args:
        total: a multiple of ``shortest``; where it is no power of two, it is a range for each of its bits.
        shortest: a power of two that no range is below.
    Raises: ValueError if ``total`` is no such multiple.
    """

    def __init__(self, total: int, shortest: int) -> None:
        if total % shortest or shortest & (shortest - 1):
            raise ValueError(f"{total} cannot be cut into ranges of {shortest}")
        self.total = total
        self._free: dict[int, set[int]] = {}
        start, length = 0, shortest
        while length <= total:
            self._free[length] = set()
            length *= 2
        for length in reversed(self._free):
            if total & length:
                self._free[length].add(start)
                start += length

    @property
    def free(self) -> int:
        """How much of all is in free ranges."""
        return sum(length * len(starts) for length, starts in self._free.items())

    def take(self, length: int) -> int | None:
        """Where a range begins that is now taken, out of the shortest free one that has it; None if none has."""
        found = next((each for each, starts in self._free.items() if each >= length and starts), None)
        if found is None:
            return None
        start = min(self._free[found])
        self._free[found].remove(start)
        while found > length:
            found //= 2
            self._free[found].add(start + found)
        return start

    def give(self, start: int, length: int) -> None:
        """A range, or some that make one together, is free again."""
        while (buddy := start ^ length) in self._free.get(length, ()):
            self._free[length].remove(buddy)
            start, length = min(start, buddy), 2 * length
        self._free[length].add(start)

    def extend(self, start: int, length: int, to: int) -> bool:
        """Whether a taken range could have what lies behind it, up to length ``to``; it is taken then."""
        behind = []
        while length < to:
            if start & length or start + length not in self._free[length]:
                return False
            behind.append(length)
            length *= 2
        for each in behind:
            self._free[each].remove(start + each)
        return True

    def clear(self, length: int) -> int:
        """Where the range begins, among all of this length, that has most in free ones; those are taken now.

        Who has moved what else is in it somewhere else has the whole range. That is always possible where as much is
        free as ``length``, though no range of it: what is in the range fits into what is free elsewhere, by clearing
        shorter ranges if need be.
        """
        room: Counter[int] = Counter()
        for each, starts in self._free.items():
            for start in starts:
                room[start - start % length] += each
        whole = {start: free for start, free in room.items() if start + length <= self.total}
        emptiest = min(whole, key=lambda start: (-whole[start], start))
        for starts in self._free.values():
            starts -= {start for start in starts if emptiest <= start < emptiest + length}
        return emptiest
