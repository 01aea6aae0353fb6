"""The header ``Server-Timing`` (W3C): where the time of a request went, in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from xpeft_server.engine.requests import Stage

_BEGAN = attrgetter("began")


def server_timing(stages: Sequence[Stage]) -> bytes:
    """Each kind of stage once, with the time in which one of it was going on: several prompts' may overlap."""
    spent: dict[str, float] = {stage.name: stage.ended - stage.began for stage in stages}
    if len(spent) < len(stages):
        spent = _united(stages)
    return ", ".join([f"{name};dur={seconds * 1000:.3f}" for name, seconds in spent.items()]).encode()


def _united(stages: Iterable[Stage]) -> dict[str, float]:
    spent: dict[str, float] = {}
    ends: dict[str, float] = {}
    for name, began, ended, _ in sorted(stages, key=_BEGAN):
        last = ends.get(name, began)
        spent[name] = spent.get(name, 0.0) + max(0.0, ended - max(began, last))
        ends[name] = max(ended, last)
    return spent
