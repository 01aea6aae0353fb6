"""Signals that end a command as an error does, so that it clears away what it began."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def termination_as_exit() -> Iterator[None]:
    """In the main thread. A signal that is ignored, as under nohup, stays so.

    Raises: SystemExit with 128 and the signal's number, as a shell has it.
    """
    kept = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in kept.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, _exit)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
