"""Processes that do not outlive the one that started them, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def lifeline() -> Callable[[], None]:
    """For ``preexec_fn``: the child gets SIGTERM when the thread that starts it ends, by kill -9 too (prctl(2))."""
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def hold() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)

    return hold
