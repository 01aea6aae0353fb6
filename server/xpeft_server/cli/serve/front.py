"""The HTTP side of a running server: in the process of its engine, or in others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class FrontFailed(Exception):
    """HTTP could not be spoken from the start; the message says why."""


class Front(Protocol):
    """For one event loop, and started once the engine is."""

    async def serve(self, announce: Callable[[], None]) -> None:
        """Listen, say so, and answer until it is closed. Raises: FrontFailed if it cannot listen."""
        ...

    def begin_drain(self) -> None:
        """Let no new request in."""
        ...

    async def wait_until_empty(self) -> None:
        """Until what is inside has been answered."""
        ...

    def close(self) -> None:
        """Connections get a second to be done."""
        ...
