"""When the answers of one stretch came, and whether they are as long as was asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any


class AnswerWrong(Exception):
    """An answer has another number of tokens than was asked for; the message names both."""


class Timeline:
    """Begins when it is made, which is when the first request can come; used by one thread.

    Args:
        at: when each request comes, in seconds since the beginning.
        new: tokens that each asks for.
        clock: seconds since any moment.
    """

    def __init__(
        self, at: Sequence[float], new: Sequence[int], *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._at = at
        self._new = new
        self._first = [0.0] * len(at)
        self._last = [0.0] * len(at)
        self._clock = clock
        self._begin = clock()

    def until(self, request: int) -> float:
        """Seconds from now until it comes; 0 or less if it is there."""
        return self._at[request] - self._since(None)

    def started(self, request: int, when: float | None = None) -> None:
        """Its first token is there, or was ``when`` the clock said so."""
        self._first[request] = self._since(when)

    def ended(self, request: int, tokens: int, when: float | None = None) -> None:
        """Its last token is there, or was ``when`` the clock said so. Raises: AnswerWrong."""
        if tokens != self._new[request]:
            raise AnswerWrong(
                f"request {request} was answered with {tokens} tokens, {self._new[request]} were asked for"
            )
        self._last[request] = self._since(when)

    def measured(self) -> dict[str, Any]:
        """``seconds`` from the first arrival to the last end; ``first_token`` and ``total`` of each, from its arrival.

        Every request must have ended.
        """
        pairs = list(zip(self._at, self._first, self._last, strict=True))
        return {
            "seconds": max(self._last) - min(self._at),
            "first_token": [first - at for at, first, _ in pairs],
            "total": [last - at for at, _, last in pairs],
        }

    def _since(self, when: float | None) -> float:
        return (self._clock() if when is None else when) - self._begin
