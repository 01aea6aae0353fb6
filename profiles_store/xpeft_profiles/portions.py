"""Many records on their way to a store far away, or from it: some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")
PORTION_BYTES: Final = 2 << 20
"""Redis is given up if it has not taken or sent all of it within 2 s: a link of 10 Mbit/s is enough."""


def portions(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """In their order, `PORTION_BYTES` together at most, unless one alone has more."""
    some: list[T] = []
    size = 0
    for item in items:
        its_size = size_of(item)
        if some and size + its_size > PORTION_BYTES:
            yield some
            some, size = [], 0
        some.append(item)
        size += its_size
    if some:
        yield some
