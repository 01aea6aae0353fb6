"""What another process noted of a request, on its way back to the caller's own journey."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from xpeft_server.engine.requests import Finished, Journey, News, Piece, Stage, Started


class Trail(NamedTuple):
    """What was noted since the last trail. Times are in seconds since the request reached that process.

    Args:
        age: when this was sent.
        stages: name, beginning, end and facts of each.
    """

    age: float
    stages: tuple[tuple[str, float, float, dict[str, int | str]], ...]
    profile_version: str | None
    prompt_tokens: int
    completion_tokens: int


class Recorder:
    """In the engine's process: reads a journey trail by trail."""

    def __init__(self, journey: Journey) -> None:
        self._journey = journey
        self._came = time.monotonic()
        self._stages = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0

    def trail(self) -> Trail:
        journey = self._journey
        stages = tuple(
            (stage.name, stage.began - self._came, stage.ended - self._came, dict(stage.facts))
            for stage in journey.stages[self._stages :]
        )
        trail = Trail(
            age=time.monotonic() - self._came,
            stages=stages,
            profile_version=journey.profile_version,
            prompt_tokens=journey.prompt_tokens - self._prompt_tokens,
            completion_tokens=journey.completion_tokens - self._completion_tokens,
        )
        self._stages = len(journey.stages)
        self._prompt_tokens = journey.prompt_tokens
        self._completion_tokens = journey.completion_tokens
        return trail


@dataclass(slots=True)
class Follower:
    """In the caller's process: writes the trails of one call into a journey, which other calls may share.

    Clocks of two machines cannot be compared: the request is taken to have travelled as long as its first trail.
    """

    journey: Journey
    _sent: float = field(default_factory=time.monotonic)
    _came: float | None = None
    _started: float | None = None
    _generated: int = 0
    _followed: int = 0

    def follow(self, trail: Trail) -> None:
        if self._came is None:
            self._came = self._sent + max(0.0, time.monotonic() - self._sent - trail.age) / 2
        for name, began, ended, facts in trail.stages:
            self.journey.stages.append(Stage(name, self._came + began, self._came + ended, facts))  # type: ignore[arg-type]
        if trail.profile_version is not None:
            self.journey.profile_version = trail.profile_version
        self.journey.prompt_tokens += trail.prompt_tokens
        self.journey.completion_tokens += trail.completion_tokens
        self._followed += trail.completion_tokens

    def hear(self, news: News) -> None:
        """Note what the news themselves tell, for `leave`."""
        match news:
            case Started():
                self._started = time.monotonic()
            case Piece(generated=generated):
                self._generated = generated
            case Finished(completion_tokens=generated):
                self._generated = generated

    def leave(self) -> None:
        """No more is awaited. After a withdrawal the last trail never comes: what was heard takes its place."""
        missing = self._generated - self._followed
        if self._started is not None and missing > 0:
            self.journey.note("decode", self._started, time.monotonic(), tokens=missing)
            self.journey.completion_tokens += missing
            self._followed = self._generated
