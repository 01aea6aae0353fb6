"""POST /v1/generate, /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from starlette.requests import Request

from .engine_port import EnginePort
from .errors import ApiError
from .replies import Reply


class Generation:
    """Refuses: no engine of this version generates text."""

    def __init__(self, *, engine: EnginePort) -> None:
        self._engine = engine

    async def refuse(self, request: Request) -> Reply:
        del request
        info = self._engine.info
        message = f"the server runs {info.plm} ({info.model_type}), which does not generate text here; use /v1/classify"
        raise ApiError(400, "model_does_not_generate", message)
