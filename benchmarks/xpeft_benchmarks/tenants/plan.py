"""What ``xpeft bench tenants`` measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class TenantsPlan:
    """What to measure.

    Args:
        store: URL of an empty store, which keeps the profiles; None for a temporary SQLite file.
        registered: profiles in it.
        tenants: who share the server, the first of them the neighbour.
        load: what all tenants together ask for in quiet times, as a part of what the server can do.
        seconds: of a stretch; flood_seconds: of the flood.
    """

    plm: str
    bank: str
    device: str
    dtype: str
    store: str | None
    registered: int
    tenants: int
    load: float
    seconds: float
    flood_seconds: float
    rounds: int
    texts: int
    slots: int | None = None
    http_processes: int = 0
    seed: int = 0

    def settings(self) -> dict[str, object]:
        return asdict(self)
