"""How a tuning worker leaves CPU and device to serving."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


def run_when_idle() -> None:
    """From now on this thread, and every thread that it starts, gets only CPU time that nobody else wants."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        os.nice(19)
        logger.warning("tuning runs at nice 19: SCHED_IDLE is refused (%s)", error.strerror)


class DeviceShare:
    """Bounds the share of time that is spent working: it is called after each step and sleeps in proportion to it.

    Semantics: after d seconds of work, sleep d · (1/share - 1).

    Args:
        share: in (0, 1].
        finish: waits for the device, so that d includes its work.
    """

    def __init__(
        self,
        share: float,
        *,
        finish: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rest = 1 / share - 1
        self._finish = finish
        self._clock = clock
        self._sleep = sleep
        self._since = clock()

    def __call__(self) -> None:
        self._finish()
        worked = self._clock() - self._since
        if self._rest:
            self._sleep(worked * self._rest)
        self._since = self._clock()
