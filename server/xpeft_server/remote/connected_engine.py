"""Both ends of a connection to an engine in another process."""

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
"""For so many seconds, or this part of ``queue_seconds`` if that is less, a tenant that was refused for its queue is
refused without asking the other end: the queue does not run empty meanwhile."""

_MOST_CLOSED: Final = 10_000


@dataclass(frozen=True, slots=True)
class EngineState:
    """An engine as it reports itself."""

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

    Its state is the other end's of a moment ago, and nothing of this process's: whether the store answers here says
    nothing of whether answers are verified there.

    Args:
        queue_seconds: most computing that waits at the other end.
    """

    def __init__(self, peer: Peer, *, queue_seconds: float) -> None:
        self._peer = peer
        self._closed_seconds = min(_CLOSED_SECONDS, _CLOSED_SHARE * queue_seconds)
        self._closed: dict[str, tuple[float, ErrorValue]] = {}  # tenant → until when, in monotonic seconds, and why
        self._state: EngineState | None = None
        self._states: AsyncGenerator[EngineState, None] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait for the first state. Raises: Unavailable."""
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
        """Only the other end knows; but a tenant that it refused a moment ago is refused again."""
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
        with contextlib.suppress(Unavailable):  # the other end is gone: every call fails with it
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
    """The engine's state, and again after every change."""
    told = None
    while True:
        state = EngineState(engine.info, engine.geometry, engine.status())
        if state != told:
            yield state
            told = state
        await asyncio.sleep(_LOOK_SECONDS)
