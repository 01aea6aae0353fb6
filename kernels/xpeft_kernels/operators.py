"""All operators, and what each runs as on a device."""

from __future__ import annotations

from typing import Final

from .aggregate import AGGREGATE
from .apply import APPLY
from .attend import ATTEND
from .attend_cache import ATTEND_CACHE
from .heads import HEADS
from .pool import POOL

OPERATORS: Final = (AGGREGATE, APPLY, HEADS, ATTEND, ATTEND_CACHE, POOL)


def chosen_implementations(device_type: str) -> dict[str, str]:
    """Operator name → implementation that ``Impl.AUTO`` means on a device, for logs, /info and metrics."""
    return {each.name: each.choose(device_type).value for each in OPERATORS}
