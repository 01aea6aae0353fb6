"""Decodes names in Redis, where another program may have put bytes that are no text."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

from ..told_once import ToldOnce

logger = logging.getLogger(__name__)


class NameReader:
    """Remembers what it has logged. ``what``: such a name in words, for the log."""

    def __init__(self) -> None:
        self._told = ToldOnce[tuple[str, bytes]]()

    def readable(self, found: Iterable[bytes], what: str) -> list[str]:
        """The names without those that are not UTF-8, which are never ours: each of these is logged once."""
        names: list[str] = []
        for name in found:
            try:
                names.append(name.decode())
            except UnicodeDecodeError:
                if self._told.is_new((what, name)):
                    logger.error("%s is left out: %r is not UTF-8", what, name)
        return names

    async def first(
        self, page: Callable[[bytes, int], Awaitable[list[bytes]]], begin: bytes, count: int, what: str
    ) -> list[str]:
        """The first ``count`` readable names. Args: page: where to begin, how many → names in order."""
        names: list[str] = []
        while len(names) < count:
            wanted = count - len(names)
            found = await page(begin, wanted)
            names += self.readable(found, what)
            if len(found) < wanted:
                break
            begin = b"(" + found[-1]
        return names
