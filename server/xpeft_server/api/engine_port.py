"""The engine as the API sees it: no tensors, only these members."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from xpeft_profiles import BankGeometry
from xpeft_server.engine.requests import (
    ClassifyAnswer,
    ClassifyRequest,
    EngineInfo,
    EngineStatus,
    GenerateRequest,
    News,
)


class EnginePort(Protocol):
    """What ``create_app`` needs of an engine; usable from one event loop."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def geometry(self) -> BankGeometry: ...

    def check_room(self, tenant: str) -> None:
        """Raises: Overloaded if a request of this tenant to classify would be refused now, whatever it asks for."""
        ...

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Answer every input with one version of the profile.

        Cancelling the caller's task withdraws the request.
        Raises: EngineError of ``xpeft_server.engine.errors``.
        """
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[News, None]:
        """Go on with a prompt; one version of the profile is used to the end.

        Closing the generator, or cancelling who waits for its next news, withdraws the request.
        Raises: EngineError, before the first news for whatever is wrong with the request.
        """
        ...

    def status(self) -> EngineStatus:
        """Whether each part works, without waiting for any of them."""
        ...
