"""How the device and the thread that feeds it spent their time."""

from __future__ import annotations

from typing import NamedTuple


class DeviceTimes(NamedTuple):
    """Since the start; they only grow.

    Args:
        batches: computed.
        busy_seconds: that the device computed batches; fills beside them are not counted.
        host_seconds: that the device thread needed to launch them, its waiting left out.
    """

    batches: int = 0
    busy_seconds: float = 0.0
    host_seconds: float = 0.0
