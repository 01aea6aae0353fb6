"""The engine's replicas as the ingress sees them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from xpeft_profiles import BankGeometry
from xpeft_server.engine.requests import (
    ClassifyRequest,
    EngineInfo,
    EngineStatus,
    GenerateRequest,
    News,
)
from xpeft_server.remote.answering import Outcome
from xpeft_server.remote.error_value import ErrorValue
from xpeft_server.remote.trail import Trail


class ReplicaLost(Exception):
    """The replica that had the request went away; how far it had come is unknown."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """The state of a replica. ``exposition``: its metrics in Prometheus' text format."""

    replica: str
    info: EngineInfo
    geometry: BankGeometry
    status: EngineStatus
    exposition: bytes


class Replicas(Protocol):
    """Calls the one that the router chooses. Used from one event loop; cancelling a call withdraws its request."""

    async def classify(self, request: ClassifyRequest) -> Outcome:
        """Raises: ReplicaLost, Overloaded."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[News | ErrorValue | Trail, None]:
        """A trail before the first news and before the last; `ErrorValue` is the last that comes.

        Raises: ReplicaLost, Overloaded.
        """
        ...

    async def reports(self) -> list[EngineReport]:
        """The reports of all that answer within a few seconds."""
        ...
