"""How much computing may wait, in seconds of what the device did lately."""

from __future__ import annotations

from collections import deque
from typing import Final

from xpeft_server.tenant_limits import LimitsOfTenants

from .room import Room

_BATCHES: Final = 32  # the pace is that of the last ones
_AT_LEAST: Final = 8  # the first ones are slow, and tell little


class Backlog:
    """Bounds the time that texts wait, where the queue's limits bound the room that they take.

    A queue of many seconds answers nobody in time once it is full, and goes on doing so long after the flood.

    Args:
        seconds: most that may wait.
        least: tokens that may wait however slow the device is.
        limits: for the part of it that each tenant may hold.

    Attributes:
        room: tokens that wait, without a bound before the pace is known.
    """

    def __init__(self, seconds: float, *, least: int, limits: LimitsOfTenants) -> None:
        self.room = Room(
            f"tokens to compute (at most {seconds:g} s of it)", None, limits, reason="queue_seconds", whole=True
        )
        self._seconds = seconds
        self._least = least
        self._batches: deque[tuple[int, float]] = deque(maxlen=_BATCHES)

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        self._batches.append((tokens, seconds))
        busy = sum(each for _, each in self._batches)
        if len(self._batches) >= _AT_LEAST and busy:
            pace = sum(each for each, _ in self._batches) / busy
            self.room.most = max(self._least, int(pace * self._seconds))
