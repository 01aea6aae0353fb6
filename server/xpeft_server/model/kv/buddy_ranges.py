"""A buddy allocator: ranges of power-of-two lengths that begin at multiples of their length (Knowlton 1965)."""

from __future__ import annotations

from collections import Counter


class BuddyRanges:
    """Allocates ranges of ``[0, total)``; two free halves of a range are merged.

    Args:
        total: a multiple of ``shortest``; if it is not a power of two, there is a range for each of its bits.
        shortest: the least length, a power of two.
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
        """Total length of the free ranges."""
        return sum(length * len(starts) for length, starts in self._free.items())

    def take(self, length: int) -> int | None:
        """Take a range out of the shortest free one that holds it. Returns: its start; None if there is none."""
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
        """Free a range, or several that make up one."""
        while (buddy := start ^ length) in self._free.get(length, ()):
            self._free[length].remove(buddy)
            start, length = min(start, buddy), 2 * length
        self._free[length].add(start)

    def extend(self, start: int, length: int, to: int) -> bool:
        """Extend a taken range to length ``to``, if what lies behind it is free. Returns: whether it was."""
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
        """Choose the range of this length with the most free space, and take what is free in it. Returns: its start.

        The caller owns the whole range once it has moved what else is in it. It always can if ``length`` is free in
        total: the rest of the range fits into what is free elsewhere, if need be by clearing shorter ranges.
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
