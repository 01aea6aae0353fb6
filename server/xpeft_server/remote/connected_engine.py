"""An engine at the other end of a connection, as the API has it, and the other end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from xpeft_profiles import BankGeometry
from xpeft_server.api.engine_port import EnginePort
from xpeft_server.engine.errors import Overloaded, Unavailable
from xpeft_server.engine.requests import (
    ClassifyAnswer,
    ClassifyRequest,
    EngineInfo,
    EngineStatus,
    GenerateRequest,
    Journey,
    News,
)

from .answering import classify, generate, heard
from .error_value import ErrorValue
from .peer import Method, Peer
from .plain import Plain, outcome_of, plain_outcome, plain_request, request_of
from .trail import Follower

_LOOK_SECONDS: Final = 0.1

_CLOSED_SECONDS: Final = 0.01
_CLOSED_SHARE: Final = 0.01
"""Seconds, or the part of ``queue_seconds`` if that is less, for which nobody asks again for a tenant of whom nothing
more may wait: what waits does not run out meanwhile."""

_MOST_CLOSED: Final = 10_000


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine says of itself."""

    info: EngineInfo
    geometry: BankGeometry
    status: EngineStatus


def engine_methods(engine: EnginePort) -> Mapping[str, Method]:
    """What a `ConnectedEngine` calls."""
    return {
        "classify": partial(_classify, engine),
        "generate": partial(generate, engine),
        "states": partial(_states, engine),
    }


class ConnectedEngine:
    """An `EnginePort`: every request goes to the other end, which refuses what it cannot take.

    What it says of itself is what the other end said a moment ago, and no more: whether the store answers here has
    nothing to do with whether answers are verified there.

    Args:
        queue_seconds: most computing that waits there.
    """

    def __init__(self, peer: Peer, *, queue_seconds: float) -> None:
        self._peer = peer
        self._closed_seconds = min(_CLOSED_SECONDS, _CLOSED_SHARE * queue_seconds)
        self._closed: dict[str, tuple[float, ErrorValue]] = {}  # tenant → until when, in monotonic seconds, and why
        self._state: EngineState | None = None
        self._states: AsyncGenerator[EngineState, None] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait for the first word. Raises: Unavailable."""
        self._states = self._peer.stream("states")
        self._state = await anext(self._states)
        self._listening = asyncio.create_task(self._listen(self._states), name="engine-states")

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        if self._states is not None:
            await self._states.aclose()

    @property
    def info(self) -> EngineInfo:
        return self._known.info

    @property
    def geometry(self) -> BankGeometry:
        return self._known.geometry

    def status(self) -> EngineStatus:
        return self._known.status

    def check_room(self, tenant: str) -> None:
        """Only the other end knows; but who was told a moment ago that nothing more may wait is told so again."""
        closed = self._closed.get(tenant)
        if closed is not None and time.monotonic() < closed[0]:
            raise closed[1].error()

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Raises: EngineError."""
        follower = Follower(request.journey)
        answer = await self._peer.call("classify", *plain_request(request))
        if isinstance(answer, ErrorValue):
            self._close(request.profile.tenant, answer)
            raise answer.error()
        outcome = outcome_of(answer)
        follower.follow(outcome.trail)
        if isinstance(outcome.result, ErrorValue):
            raise outcome.result.error()
        return outcome.result

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[News, None]:
        """Raises: EngineError."""
        asked = replace(request, journey=Journey(request.journey.id))
        async with aclosing(heard(self._peer.stream("generate", asked), request.journey)) as news:
            async for each in news:
                yield each

    @property
    def _known(self) -> EngineState:
        if self._state is None:
            raise Unavailable("the engine has not said anything yet")
        return self._state

    def _close(self, tenant: str, refused: ErrorValue) -> None:
        if len(self._closed) >= _MOST_CLOSED:
            self._closed.clear()
        self._closed[tenant] = time.monotonic() + self._closed_seconds, refused

    async def _listen(self, states: AsyncGenerator[EngineState, None]) -> None:
        with contextlib.suppress(Unavailable):  # the other end is gone: whoever calls is told so
            async for self._state in states:
                pass


async def _classify(engine: EnginePort, *request: Any) -> Plain | ErrorValue:
    """A bare `ErrorValue` if the engine now refuses every request of this tenant; otherwise the outcome."""
    asked = request_of(request)
    try:
        engine.check_room(asked.profile.tenant)
    except Overloaded as error:
        return ErrorValue.of(error)
    return plain_outcome(await classify(engine, asked))


async def _states(engine: EnginePort) -> AsyncGenerator[EngineState, None]:
    """What it says of itself, and again after changes."""
    told = None
    while True:
        state = EngineState(engine.info, engine.geometry, engine.status())
        if state != told:
            yield state
            told = state
        await asyncio.sleep(_LOOK_SECONDS)
