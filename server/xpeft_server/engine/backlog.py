"""How much computing waits, in seconds of what the device did lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .errors import Overloaded
from .metrics import Metrics

_BATCHES: Final = 32  # the pace is that of the last ones
_AT_LEAST: Final = 8  # the first ones are slow, and tell little


class Backlog:
    """Bounds the time that texts wait, where `Permits` bound the room that they take. Event loop only.

    A queue of many seconds answers nobody in time once it is full, and goes on doing so long after the flood.

    Args:
        seconds: most that may wait.
        least: tokens that may wait however slow the device is.
    """

    def __init__(self, seconds: float, *, least: int, metrics: Metrics) -> None:
        self._seconds = seconds
        self._least = least
        self._refused = metrics.refusals["queue_seconds"]
        self._batches: deque[tuple[int, float]] = deque(maxlen=_BATCHES)
        self._pace: float | None = None
        self.tokens = 0

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._batches.append((tokens, seconds))
        busy = sum(each for _, each in self._batches)
        if len(self._batches) >= _AT_LEAST and busy:
            self._pace = sum(each for each, _ in self._batches) / busy

    @contextmanager
    def waiting(self, tokens: int) -> Iterator[None]:
        """So many tokens wait meanwhile. A request is let in whole when nothing else waits.

        Raises: Overloaded.
        """
        most = None if self._pace is None else max(self._least, int(self._pace * self._seconds))
        if most is not None and self.tokens and self.tokens + tokens > most:
            self._refused.inc()
            raise Overloaded(
                f"{self.tokens} tokens are waiting, and {tokens} more would take longer than {self._seconds:g} s"
            )
        self.tokens += tokens
        try:
            yield
        finally:
            self.tokens -= tokens
