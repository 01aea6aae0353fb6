"""Splits many records on their way to or from a remote store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")
PORTION_BYTES: Final = 2 << 20
"""A call to Redis must take or send all of a portion within 2 s, for which a link of 10 Mbit/s is enough."""


def portions(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Runs of items of at most `PORTION_BYTES` together; a larger item is alone."""
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
