"""How the device and the thread that feeds it spent their time."""

from __future__ import annotations

from typing import NamedTuple


class DeviceTimes(NamedTuple):
    """Since the start; they only grow.

    Args:
        batches: computed.
        busy_seconds: the device computed batches; fills beside them are not counted.
        host_seconds: the device thread spent launching them, without its waits.
    """

    batches: int = 0
    busy_seconds: float = 0.0
    host_seconds: float = 0.0
