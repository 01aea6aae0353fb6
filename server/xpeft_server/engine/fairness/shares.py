"""Which tenants recently had more of the device than their share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from xpeft_server.tenant_limits import LimitsOfTenants

HALF_LIFE: Final = 2.0
"""Seconds after which a token counts half."""

MARGIN: Final = 1.25
"""A tenant is ahead beyond so many times its share; tenants that share evenly never get there by chance or rounding."""

_FORGOTTEN: Final = 2.0  # tokens


class Shares:
    """Decayed counts of the tokens computed for each tenant. Owned by the device thread.

    A tenant's share is its weight over the weights of all tenants that are waiting or were served lately.

    Args:
        limits: the tenants' weights.
        clock: monotonic seconds.
    """

    def __init__(self, limits: LimitsOfTenants, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        # Counts are in tokens at the time `_start`: later tokens are scaled up, so that earlier ones need no decay.
        self._start = clock()
        self._used: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._all_used = 0.0
        self._all_weights = 0.0

    def weight(self, tenant: str) -> float:
        return self._limits.of(tenant).weight

    def enter(self, tenants: Iterable[str]) -> None:
        """These tenants have something waiting."""
        for tenant in tenants:
            if tenant not in self._used:
                self._used[tenant] = 0.0
                self._weights[tenant] = self.weight(tenant)
                self._all_weights += self._weights[tenant]

    def charge(self, tenant: str, tokens: int) -> None:
        """Tokens of this tenant are being computed."""
        now = self._clock()
        if now - self._start > HALF_LIFE:
            self._sweep(now)
        self.enter([tenant])
        scaled = tokens * 2.0 ** ((now - self._start) / HALF_LIFE)
        self._used[tenant] += scaled
        self._all_used += scaled

    def refund(self, tenant: str, tokens: int, charged: float) -> None:
        """So many of the tokens that the tenant was charged need not be computed.

        Args: charged: when, in monotonic seconds; they have decayed since then.
        """
        scaled = min(tokens * 2.0 ** ((charged - self._start) / HALF_LIFE), self._used.get(tenant, 0.0))
        if scaled:
            self._used[tenant] -= scaled
            self._all_used -= scaled

    def share(self, tenant: str) -> float:
        """The tenant's part of the device, 0 to 1; it must have entered."""
        return self._weights[tenant] / self._all_weights

    def part(self, tenant: str) -> float:
        """What the tenant had of all that was computed lately, 0 to 1."""
        return self._used.get(tenant, 0.0) / self._all_used if self._all_used else 0.0

    def is_ahead(self, tenant: str) -> bool:
        """Whether the tenant had clearly more than its share."""
        used = self._used.get(tenant)
        if used is None:
            return False
        return used * self._all_weights > MARGIN * self._weights[tenant] * self._all_used

    def _sweep(self, now: float) -> None:
        """Decay all counts, read the weights anew, and forget tenants that have had nothing for long."""
        factor = 0.5 ** ((now - self._start) / HALF_LIFE)
        self._start = now
        used = {tenant: tokens * factor for tenant, tokens in self._used.items()}
        self._used = {tenant: tokens for tenant, tokens in used.items() if tokens >= _FORGOTTEN}
        self._weights = {tenant: self.weight(tenant) for tenant in self._used}
        self._all_used = sum(self._used.values())
        self._all_weights = sum(self._weights.values())
