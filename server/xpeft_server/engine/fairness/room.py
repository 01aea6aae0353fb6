"""Room that tenants share: each may hold a part of what the others leave."""

from __future__ import annotations

from xpeft_server.tenant_limits import LimitsOfTenants

from ..errors import LimitReached, Overloaded


class Room:
    """Counts what is in. Whatever comes while nothing is in, and a tenant's first where it fits, is let in.

    Args:
        unit: what is counted, for messages.
        most: None bounds nothing yet.
        limits: for the part that each tenant may hold.
        reason: a word of `metrics.REFUSALS`, where all of it is taken.
        whole: a tenant's first is let in while any room is left, whether or not it fits.

    Attributes:
        taken: by all.
    """

    def __init__(
        self, unit: str, most: int | None, limits: LimitsOfTenants, *, reason: str = "queue", whole: bool = False
    ) -> None:
        self.most = most
        self.taken = 0
        self._unit = unit
        self._limits = limits
        self._reason = reason
        self._whole = whole
        self._mine: dict[str, int] = {}

    def check(self, tenant: str, count: int) -> None:
        """Raises: Overloaded if so much more does not fit, LimitReached if not into the tenant's part."""
        if self.most is None or not self.taken:
            return
        mine = self._mine.get(tenant, 0)
        if self._whole and not mine and self.taken < self.most:
            return
        if self.taken + count > self.most:
            message = f"{self.taken} {self._unit} are waiting; with {count} more there would be more than {self.most}"
            raise Overloaded(message, reason=self._reason)
        part = int(self._limits.of(tenant).queue_share * (self.most - self.taken + mine))
        if mine and mine + count > part:
            message = (
                f"{mine} {self._unit} of this tenant are waiting; with {count} more it would pass its share of {part}"
            )
            raise LimitReached("queue_share", message)

    def take(self, tenant: str, count: int) -> None:
        self.taken += count
        self._mine[tenant] = self._mine.get(tenant, 0) + count

    def leave(self, tenant: str, count: int) -> None:
        self.taken -= count
        left = self._mine.get(tenant, 0) - count
        if left:
            self._mine[tenant] = left
        else:
            self._mine.pop(tenant, None)
