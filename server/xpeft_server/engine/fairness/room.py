"""Room that tenants share: each may hold a part of what the others leave."""

from __future__ import annotations

from types import TracebackType

from xpeft_server.tenant_limits import LimitsOfTenants

from ..errors import LimitReached, Overloaded


class Room:
    """Counts what is inside. An empty room lets anything in, and a tenant's first entry is let in wherever it fits.

    Args:
        unit: what is counted, for messages.
        most: None sets no bound yet.
        limits: the part that each tenant may hold.
        reason: a word of `metrics.REFUSALS`, for refusals because the room is full.
        whole: a tenant's first entry is let in while any room is left, whether or not it fits.

    Attributes:
        taken: by all tenants.
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
        """Raises: Overloaded if the room has no space for it, LimitReached if the tenant's part has none."""
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

    def held(self, tenant: str, count: int) -> Held:
        """Takes ``count`` while it is entered. Entering raises what `check` raises."""
        return Held(self, tenant, count)

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


class Held:
    """Space in a room that is taken while this is entered."""

    __slots__ = ("_count", "_room", "_tenant")

    def __init__(self, room: Room, tenant: str, count: int) -> None:
        self._room = room
        self._tenant = tenant
        self._count = count

    def __enter__(self) -> None:
        self._room.check(self._tenant, self._count)
        self._room.take(self._tenant, self._count)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._room.leave(self._tenant, self._count)
