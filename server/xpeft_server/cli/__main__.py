"""Entry point of the console script. The heap comes first: a process restarts fastest before it loads anything."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .heap import limit_product_caches, restart_with_tuned_heap

INTERRUPTED: Final = 128 + signal.SIGINT


def main() -> None:
    with ending_at_once():
        limit_product_caches()
        restart_with_tuned_heap()
        from .main import app

    try:
        app()
    except KeyboardInterrupt:  # while the commands are put together; later they have their own way with it
        sys.exit(INTERRUPTED)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """By Ctrl-C, as any program that has begun nothing. Where it is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    main()
