"""A rate limit that allows bursts of one second's worth."""

from __future__ import annotations


class TokenBucket:
    """Counts what was spent and has not been refilled yet, at a rate that may change from call to call.

    One second's worth may be spent at once, and at least 1. A single large expense (a long text is let in whole) may
    overdraw it; the next one waits until the debt is refilled. Without a rate nothing is counted.
    """

    __slots__ = ("_owed", "_stamp")

    def __init__(self, now: float) -> None:
        self._owed = 0.0
        self._stamp = now

    def wait(self, rate: float | None, need: float, now: float) -> float:
        """Seconds until ``need`` may be spent. ``rate``: a second; ``now``: monotonic seconds."""
        self._make_up(rate, now)
        if rate is None:
            return 0.0
        return max(0.0, self._owed + need - max(rate, 1.0)) / rate

    def spend(self, amount: float) -> None:
        self._owed += amount

    def is_full(self, rate: float | None, now: float) -> bool:
        """Whether nothing is owed."""
        self._make_up(rate, now)
        return not self._owed

    def _make_up(self, rate: float | None, now: float) -> None:
        self._owed = 0.0 if rate is None else max(0.0, self._owed - rate * (now - self._stamp))
        self._stamp = now
