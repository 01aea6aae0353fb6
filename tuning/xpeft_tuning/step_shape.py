"""Buckets of shapes that a step is cut into, few enough for each to have a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

_LENGTHS: Final = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_FEWEST_ROWS: Final = 4


class StepShape(NamedTuple):
    """Places × rows × tokens. answer: most tokens of a completion, 0 where texts are labelled."""

    places: int
    rows: int
    length: int
    answer: int

    @property
    def texts(self) -> int:
        return self.places * self.rows

    @property
    def tokens(self) -> int:
        return self.texts * self.length


class Need(NamedTuple):
    """Size of one trainee's batch: rows, tokens of the longest text, and of the longest completion."""

    rows: int
    longest: int
    answer: int = 0


class Part(NamedTuple):
    """Trainees that go together in one shape, as indices of their needs."""

    shape: StepShape
    members: list[int]


class Cut(NamedTuple):
    """left: indices of needs that fit no shape."""

    parts: list[Part]
    left: list[int]


class StepShapes:
    """Rows and places are rounded up to powers of two, text lengths to the next of `_LENGTHS`.

    Args:
        places: P; rows: most of a trainee's batch.
        limit: tokens of a text that the model takes.
        tokens: most of a part, padding included.
    """

    def __init__(self, *, places: int, rows: int, limit: int, tokens: int) -> None:
        self._places = places
        self._rows = rows
        self._tokens = tokens
        self._lengths = [each for each in _LENGTHS if each < limit]
        if limit <= _LENGTHS[-1]:
            self._lengths.append(limit)

    def cut(self, needs: Sequence[Need]) -> Cut:
        """Parts of trainees with texts of similar length, the longest first."""
        fits = [number for number, need in enumerate(needs) if self._fits(need)]
        order = sorted(fits, key=lambda number: (needs[number].longest, needs[number].rows), reverse=True)
        parts: list[Part] = []
        while order:
            shape, taken = self._next_part([needs[number] for number in order])
            parts.append(Part(shape, order[:taken]))
            order = order[taken:]
        return Cut(parts, sorted(set(range(len(needs))) - set(fits)))

    def _fits(self, need: Need) -> bool:
        return need.longest <= self._lengths[-1] and self._most_places(need) > 0

    def _most_places(self, need: Need) -> int:
        """Places of a part whose largest need this is."""
        length = self._length(need.longest)
        return min(self._places, self._tokens // (self._next_power(need.rows, _FEWEST_ROWS, self._rows) * length))

    def _next_part(self, needs: Sequence[Need]) -> tuple[StepShape, int]:
        """The shape of the next part, and how many of the first needs go into it."""
        most, taken = needs[0], 1
        for need in needs[1:]:
            larger = Need(*(max(a, b) for a, b in zip(most, need, strict=True)))
            if self._most_places(larger) <= taken:
                break
            most, taken = larger, taken + 1
        length = self._length(most.longest)
        shape = StepShape(
            places=self._next_power(taken, 1, self._most_places(most)),
            rows=self._next_power(most.rows, _FEWEST_ROWS, self._rows),
            length=length,
            answer=min(self._length(most.answer), length - 1) if most.answer else 0,
        )
        return shape, taken

    def _length(self, tokens: int) -> int:
        return next(each for each in self._lengths if each >= tokens)

    @staticmethod
    def _next_power(count: int, fewest: int, most: int) -> int:
        """The next power of two, but no more than ``most``."""
        return min(max(fewest, 1 << (count - 1).bit_length()), most)
