"""The HTTP side of a running server: in the process of its engine, or in others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class FrontFailed(Exception):
    """The HTTP side could not start; the message says why."""


class Front(Protocol):
    """For one event loop; started after the engine."""

    async def serve(self, announce: Callable[[], None]) -> None:
        """Listen, announce it, and answer until closed. Raises: FrontFailed if it cannot listen."""
        ...

    def begin_drain(self) -> None:
        """Let no new request in."""
        ...

    async def wait_until_empty(self) -> None:
        """Wait until every request inside has been answered."""
        ...

    def close(self) -> None:
        """End; connections get a second to finish."""
        ...
