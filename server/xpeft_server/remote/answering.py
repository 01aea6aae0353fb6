"""An engine's answers as values that can leave its process, with their errors and what was noted of the request."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from xpeft_server.api.engine_port import EnginePort
from xpeft_server.engine.errors import EngineError
from xpeft_server.engine.requests import (
    ClassifyAnswer,
    ClassifyRequest,
    Finished,
    GenerateRequest,
    Journey,
    News,
    Started,
)

from .error_value import ErrorValue
from .trail import Follower, Recorder, Trail


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request to classify."""

    result: ClassifyAnswer | ErrorValue
    trail: Trail


async def classify(engine: EnginePort, request: ClassifyRequest) -> Outcome:
    """Never raises an EngineError. Cancelling it withdraws the request."""
    recorder = Recorder(request.journey)
    result: ClassifyAnswer | ErrorValue
    try:
        result = await engine.classify(request)
    except EngineError as error:
        result = ErrorValue.of(error)
    return Outcome(result, recorder.trail())


async def generate(engine: EnginePort, request: GenerateRequest) -> AsyncGenerator[News | ErrorValue | Trail, None]:
    """A trail before the first news, before the last and after it; `ErrorValue` is the last news that comes.

    Never raises an EngineError. Closing it withdraws the request.
    """
    recorder = Recorder(request.journey)
    try:
        async with aclosing(engine.generate(request)) as news:
            async for each in news:
                if isinstance(each, (Started, Finished)):
                    yield recorder.trail()
                yield each
    except EngineError as error:
        yield recorder.trail()
        yield ErrorValue.of(error)
    else:
        yield recorder.trail()


async def heard(items: AsyncGenerator[News | ErrorValue | Trail, None], journey: Journey) -> AsyncGenerator[News, None]:
    """In the caller: the news among what `generate` tells; the rest is noted in the journey. Closes ``items``.

    Raises: EngineError.
    """
    follower = Follower(journey)
    try:
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Trail):
                    follower.follow(item)
                elif isinstance(item, ErrorValue):
                    raise item.error()
                else:
                    follower.hear(item)
                    yield item
    finally:
        follower.leave()
