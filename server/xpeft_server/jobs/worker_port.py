"""The worker interface that jobs depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from .requests import TuningRequest

Progress = Mapping[str, Any]
"""``epoch``, ``epochs``, ``step``, ``steps``, ``loss`` (nats)."""


class Tuned(NamedTuple):
    """A profile file and a report about it, a JSON object."""

    file: bytes
    report: Mapping[str, Any]


class Worker(Protocol):
    """Tunes one profile at a time. Used from one event loop, which it never blocks."""

    async def tune(self, request: TuningRequest, progress: Callable[[Progress], None]) -> Tuned:
        """Cancelling this ends the work at once. Raises: JobFailure."""
        ...

    async def close(self) -> None:
        """End what runs. It may be called twice."""
        ...
