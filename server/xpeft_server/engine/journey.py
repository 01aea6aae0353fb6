"""What the engine records about a request for traces and logs, even if the request fails or is withdrawn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Literal, NamedTuple

StageName = Literal["tokenise", "store", "queue", "fill", "forward", "prefill", "decode"]
Facts = Mapping[str, int | str]
_NO_FACTS: Final[Facts] = {}


class Stage(NamedTuple):
    """A stage of a request: begin and end in monotonic seconds, and its facts by name.

    ``fill`` and ``forward`` are the whole batch's: a request waits for everything in its batch.
    """

    name: StageName
    began: float
    ended: float
    facts: Facts = _NO_FACTS


class Journey:
    """Written in the event loop alone. Several prompts of one request share one.

    Args:
        id: what logs call the request.

    Attributes:
        stages: in the order in which they ended; they may overlap.
        profile_version: of the answer; None before there is any, and of the bare PLM's.
        prompt_tokens: of what was answered.
        completion_tokens: generated for it, whether it came to an end or not.
    """

    __slots__ = ("completion_tokens", "id", "profile_version", "prompt_tokens", "stages")

    def __init__(self, id: str = "") -> None:  # noqa: A002
        self.id = id
        self.stages: list[Stage] = []
        self.profile_version: str | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def note(self, name: StageName, began: float, ended: float, **facts: int | str) -> None:
        self.stages.append(Stage(name, began, ended, facts))

    def stage(self, name: StageName, **facts: int | str) -> _OpenStage:
        """Record the ``with`` block as a stage, however it ends."""
        return _OpenStage(self, name, facts)


class _OpenStage:
    __slots__ = ("_began", "_facts", "_journey", "_name")

    def __init__(self, journey: Journey, name: StageName, facts: Facts) -> None:
        self._journey = journey
        self._name: StageName = name
        self._facts = facts

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journey.stages.append(Stage(self._name, self._began, time.monotonic(), self._facts))
