"""A tenant's use of its limits: concurrent requests, requests a second, tokens a second."""

from __future__ import annotations

from xpeft_server.tenant_limits import TenantLimits

from ..errors import LimitReached
from .token_bucket import TokenBucket


class TenantAccount:
    """Counts of one tenant. Limits come with each call, because they may change. ``now``: monotonic seconds.

    Attributes:
        requests: accepted and not yet answered.
    """

    __slots__ = ("_sent", "_spent", "requests")

    def __init__(self, now: float) -> None:
        self.requests = 0
        self._sent = TokenBucket(now)
        self._spent = TokenBucket(now)

    def check(self, limits: TenantLimits, now: float) -> None:
        """Raises: LimitReached if one more request is too many now."""
        most = limits.concurrent_requests
        if most is not None and self.requests >= most:
            raise LimitReached("concurrency", f"{self.requests} requests of this tenant are open, {most} may be")
        for unit, rate, wait in (
            ("request", limits.requests_per_second, self._sent.wait(limits.requests_per_second, 1.0, now)),
            ("token", limits.tokens_per_second, self._spent.wait(limits.tokens_per_second, 0.0, now)),
        ):
            if wait:
                message = f"this tenant may send {rate:g} {unit}s a second"
                raise LimitReached(f"{unit}_rate", message, retry_after=wait)

    def enter(self) -> None:
        """One more request."""
        self._sent.spend(1.0)
        self.requests += 1

    def leave(self) -> None:
        self.requests -= 1

    def spend(self, tokens: int) -> None:
        """Tokens that count against the rate."""
        self._spent.spend(tokens)

    def is_idle(self, limits: TenantLimits, now: float) -> bool:
        """Whether it can be forgotten without losing anything."""
        full = self._sent.is_full(limits.requests_per_second, now)
        return not self.requests and full and self._spent.is_full(limits.tokens_per_second, now)
