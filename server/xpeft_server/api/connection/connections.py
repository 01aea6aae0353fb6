"""The open connections of a server: their limit, the eviction of idle ones, and clients that read nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from xpeft_server.engine.metrics import Metrics

HEAD_SECONDS: Final = 10.0
# Connections beyond the limit, for one request each.
_BEYOND: Final = 8
# Above this part of the limit idle connections are evicted.
_CROWDED: Final = 0.9
_SWEEP_SECONDS: Final = 1.0
# Checks, at least, within the time that a client may read nothing, or request nothing.
_SWEEPS: Final = 4

EndReason = Literal["refused", "room", "idle", "late", "unread"]


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections there may be, and how long each may keep the server waiting.

    Attributes:
        idle_seconds: for the next request, after an answer.
        send_seconds: for the client to take anything of what it was sent.
        head_seconds: for the end of a handshake, and for the end of a request's headers.
        rest_seconds: between two requests of a client that is busy; before that nobody's room is taken.
    """

    most: int
    idle_seconds: float
    send_seconds: float
    head_seconds: float = HEAD_SECONDS
    rest_seconds: float = 1.0


class Connection(Protocol):
    def make_room(self) -> None:
        """Close it, though its client may have been about to send a request."""

    def look(self, now: float) -> bool:
        """End it if it has to end. Returns: whether to look again."""

    def end_idle(self, now: float) -> bool:
        """End it, unless its client is about something. Returns: whether it ended."""


class Connections:
    """Counts connections, and knows which are idle and which have bytes on their way out. Used from one event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self, limits: ConnectionLimits, *, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._gauge = metrics.connections
        self._ends = metrics.connection_ends
        self._open: set[Connection] = set()
        self._beyond: set[Connection] = set()
        self._idle: dict[Connection, float] = {}  # since when, the longest first
        self._watched: set[Connection] = set()
        self._pause = min(_SWEEP_SECONDS, limits.send_seconds / _SWEEPS, limits.idle_seconds / _SWEEPS)
        self._next_sweep = 0.0
        metrics.connections_limit.set(limits.most)

    def enter(self, connection: Connection) -> bool:
        """Whether there is room for one more. When room is scarce the connection that was idle longest is evicted."""
        if len(self._open) + 1 > _CROWDED * self.limits.most:
            self._make_room()
        if len(self._open) >= self.limits.most:
            return False
        self._open.add(connection)
        self._gauge.set(len(self._open))
        return True

    def enter_beyond(self, connection: Connection) -> bool:
        """Whether one more may be answered beyond the limit, for a request that takes no time."""
        if len(self._beyond) >= _BEYOND:
            return False
        self._beyond.add(connection)
        return True

    def leave(self, connection: Connection) -> None:
        """It is closed, or never came to be."""
        self._open.discard(connection)
        self._beyond.discard(connection)
        self._idle.pop(connection, None)
        self._watched.discard(connection)
        self._gauge.set(len(self._open))

    def works(self, connection: Connection) -> None:
        """A request is being answered, or the connection ends: watch what goes out until it has been taken."""
        self._idle.pop(connection, None)
        self._watched.add(connection)

    def waits(self, connection: Connection) -> None:
        """Its requests are answered."""
        self._idle[connection] = self._clock()

    def count_end(self, reason: EndReason) -> None:
        """The server ended a connection, or did not begin it."""
        self._ends[reason].inc()

    def sweep(self) -> None:
        """Check watched and idle connections if it is time. To be called often, so that no request needs a timer."""
        now = self._clock()
        if now < self._next_sweep:
            return
        self._next_sweep = now + self._pause
        for connection in tuple(self._watched):
            if not connection.look(now):
                self._watched.discard(connection)
        self._end_idle(now)

    def _end_idle(self, now: float) -> None:
        while self._idle:
            longest, since = next(iter(self._idle.items()))
            if now - since < self.limits.idle_seconds:
                break
            del self._idle[longest]
            if not longest.end_idle(now):
                self._idle[longest] = now

    def _make_room(self) -> None:
        longest = next(iter(self._idle), None)
        if longest is not None and self._clock() - self._idle[longest] >= self.limits.rest_seconds:
            del self._idle[longest]
            self.count_end("room")
            longest.make_room()
