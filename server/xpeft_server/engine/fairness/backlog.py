"""How much work may wait, in seconds at the device's recent pace."""

from __future__ import annotations

from collections import deque
from typing import Final

from xpeft_server.tenant_limits import LimitsOfTenants

from .room import Room

_BATCHES: Final = 32  # the pace is that of the last ones
_AT_LEAST: Final = 8  # the first ones are slow, and tell little


class Backlog:
    """Bounds how long texts wait; the queue's limits bound how much memory they take.

    A full queue of many seconds answers nobody in time, and goes on doing so long after the flood.

    Args:
        seconds: most work that may wait.
        least: tokens that may wait however slow the device is.
        limits: the part of it that each tenant may hold.

    Attributes:
        room: tokens that wait; not bounded until the pace is known.
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
