"""How much computing waits, in seconds of what the device did lately."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from xpeft_server.tenant_limits import LimitsOfTenants

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
        limits: for the part of it that each tenant may hold.
    """

    def __init__(self, seconds: float, *, least: int, limits: LimitsOfTenants, metrics: Metrics) -> None:
        self._seconds = seconds
        self._least = least
        self._limits = limits
        self._refused = metrics.refusals["queue_seconds"]
        self._batches: deque[tuple[int, float]] = deque(maxlen=_BATCHES)
        self._most: int | None = None
        self._mine: Counter[str] = Counter()
        self.tokens = 0

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._batches.append((tokens, seconds))
        busy = sum(each for _, each in self._batches)
        if len(self._batches) >= _AT_LEAST and busy:
            pace = sum(each for each, _ in self._batches) / busy
            self._most = max(self._least, int(pace * self._seconds))

    @contextmanager
    def waiting(self, tenant: str, tokens: int) -> Iterator[None]:
        """So many tokens wait meanwhile. A tenant's first request is let in whole while there is any room.

        Raises: Overloaded.
        """
        self.check(tenant, tokens)
        self.tokens += tokens
        self._mine[tenant] += tokens
        try:
            yield
        finally:
            self.tokens -= tokens
            self._mine[tenant] -= tokens
            if not self._mine[tenant]:
                del self._mine[tenant]

    def check(self, tenant: str, tokens: int) -> None:
        """Raises: Overloaded if there is no room for so many more."""
        if self._most is None:
            return
        mine = self._mine[tenant]
        if mine:
            others = self.tokens - mine
            fits = mine + tokens <= self._limits.of(tenant).queue_share * (self._most - others)
        else:
            fits = self.tokens < self._most
        if not fits:
            self._refused.inc()
            raise Overloaded(
                f"{self.tokens} tokens are waiting, {mine} of them this tenant's: {tokens} more would take too long"
            )
