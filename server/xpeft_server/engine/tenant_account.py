"""What a tenant has in the house, and what it may still send."""

from __future__ import annotations

from xpeft_server.tenant_limits import TenantLimits

from .errors import LimitReached
from .token_bucket import TokenBucket


class TenantAccount:
    """Counts of one tenant; its limits come with each call, for they may have changed. ``now``: monotonic seconds.

    Attributes:
        requests, inside: requests accepted and not yet answered, and their texts and tokens.
    """

    __slots__ = ("_room", "_work", "inside", "requests")

    def __init__(self, now: float) -> None:
        self.requests = 0
        self.inside = {"texts": 0, "tokens": 0}
        self._room = TokenBucket(now)
        self._work = TokenBucket(now)

    def check_share(self, unit: str, count: int, left: int, limits: TenantLimits) -> None:
        """Whether so much more fits into the tenant's part of what others leave. A first request always does.

        Raises: LimitReached.
        """
        mine, most = self.inside[unit], int(left * limits.queue_share)
        if mine and mine + count > most:
            message = f"{mine} {unit} of this tenant are waiting and {count} more would pass its share of {most}"
            raise LimitReached("queue_share", message)

    def check_rates(self, limits: TenantLimits, now: float) -> None:
        """Raises: LimitReached if one more request is too many now."""
        most = limits.concurrent_requests
        if most is not None and self.requests >= most:
            raise LimitReached("concurrency", f"{self.requests} requests of this tenant are open, {most} may be")
        for reason, rate, wait in (
            ("request_rate", limits.requests_per_second, self._room.wait(limits.requests_per_second, 1.0, now)),
            ("token_rate", limits.tokens_per_second, self._work.wait(limits.tokens_per_second, 0.0, now)),
        ):
            if wait:
                unit = reason.partition("_")[0]
                raise LimitReached(reason, f"this tenant may send {rate:g} {unit}s a second", retry_after=wait)

    def enter(self, texts: int) -> None:
        self._room.spend(1.0)
        self.requests += 1
        self.inside["texts"] += texts

    def leave(self, texts: int, tokens: int) -> None:
        self.requests -= 1
        self.inside["texts"] -= texts
        self.inside["tokens"] -= tokens

    def spend(self, tokens: int) -> None:
        """Tokens that count against the rate."""
        self._work.spend(tokens)

    def is_idle(self, limits: TenantLimits, now: float) -> bool:
        """Whether nothing would be lost if it were forgotten."""
        if self.requests:
            return False
        return self._room.is_full(limits.requests_per_second, now) and self._work.is_full(limits.tokens_per_second, now)
