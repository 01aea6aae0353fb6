"""The engine's replicas, reached through a handle of Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import Any, Final

from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from xpeft_server.engine.errors import Overloaded, Unavailable
from xpeft_server.engine.requests import ClassifyRequest, GenerateRequest, News
from xpeft_server.remote.answering import Outcome
from xpeft_server.remote.error_value import ErrorValue
from xpeft_server.remote.trail import Trail

from .exposition import Exposition
from .replicas import EngineReport, ReplicaLost

ANSWER_SECONDS: Final = 3.0
"""Seconds for a report; slower replicas are left out of the round."""


class ServeReplicas:
    """Args: ``handle``: of the deployment of `EngineReplica`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._classify = handle.options(method_name="classify")
        self._generate = handle.options(method_name="generate", stream=True)
        self._report = handle.options(method_name="report")

    async def classify(self, request: ClassifyRequest) -> Outcome:
        outcome: Outcome = await _answer(self._classify, request)
        return outcome

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[News | ErrorValue | Trail, None]:
        response: Any = self._generate.remote(request)
        done = False
        try:
            with _in_our_words():
                async for news in response:
                    yield news
            done = True
        finally:
            if not done:
                response.cancel()

    async def reports(self) -> list[EngineReport]:
        answers = await _everybody(self._handle, "report")
        if answers is None:
            return await self._any_report()
        return [each for each in answers if isinstance(each, EngineReport)]

    async def _any_report(self) -> list[EngineReport]:
        """A replica that hangs must not hide the others: ask one that the router chooses."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return [await _answer(self._report)]
        except (TimeoutError, ReplicaLost, Overloaded, Unavailable):
            return []


class ServePeers:
    """Args: ``handle``: of the deployment of `Ingress`."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def expositions(self) -> list[Exposition]:
        return [each for each in await _everybody(self._handle, "exposition") or () if isinstance(each, Exposition)]


async def _everybody(handle: DeploymentHandle[Any], method: str) -> list[object] | None:
    """The answers of all replicas, failures included; None if one does not answer, or there is none."""
    try:
        return await handle.broadcast(method).results_async(timeout_s=ANSWER_SECONDS, return_exceptions=True)
    except (TimeoutError, DeploymentUnavailableError, RayActorError):
        return None


async def _answer(method: DeploymentHandle[Any], *arguments: object) -> Any:
    """Raises: ReplicaLost, Overloaded, Unavailable. Cancelling the caller cancels the call."""
    response: Any = method.remote(*arguments)
    try:
        with _in_our_words():
            return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


@contextmanager
def _in_our_words() -> Generator[None, None, None]:
    try:
        yield
    except (RayActorError, ReplicaUnavailableError, TaskCancelledError) as error:
        # Ray's message has many lines.
        raise ReplicaLost(str(error).partition("\n")[0]) from error
    except BackPressureError as error:
        raise Overloaded("every replica has as many requests as it may have") from error
    except DeploymentUnavailableError as error:
        raise Unavailable("the engine has no replica: it could not be deployed") from error
