"""The engine as the API sees it: no tensors, only these members."""

from __future__ import annotations

from typing import Protocol

from xpeft_profiles import BankGeometry
from xpeft_server.engine.requests import ClassifyAnswer, ClassifyRequest, EngineInfo, EngineStatus


class EnginePort(Protocol):
    """What ``create_app`` needs of an engine; usable from one event loop."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def geometry(self) -> BankGeometry: ...

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Answer every input with one version of the profile.

        Cancelling the caller's task withdraws the request.
        Raises: EngineError of ``xpeft_server.engine.errors``.
        """
        ...

    def status(self) -> EngineStatus:
        """Whether each part works, without waiting for any of them."""
        ...
