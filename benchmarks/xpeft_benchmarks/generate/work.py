"""What generation is measured with: the plan, and the requests that are drawn for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from ..popularity import Popularity


@dataclass(frozen=True, slots=True)
class GeneratePlan:
    """What to measure. Lengths are in tokens; pairs are the shortest and the longest.

    Args:
        max_batch_tokens: the engine's.
        continuous: whether transformers' continuous batching is measured, too.
        batch: most requests in a padded batch.
        new: what each request asks for where all are there at once.
        mixed_new: what it asks for where they come one after the other.
    """

    plm: str
    bank: str
    device: str
    dtype: str
    requests: int
    profiles: int
    rounds: int
    max_batch_tokens: int
    continuous: bool = True
    batch: int = 32
    prompt: tuple[int, int] = (15, 70)
    new: int = 48
    mixed_new: tuple[int, int] = (8, 96)
    seed: int = 0

    def settings(self) -> dict[str, object]:
        return asdict(self)


class Load(NamedTuple):
    """``[requests]`` each: tokens that they ask for, and when they come, in seconds."""

    new: list[int]
    at: list[float]


@dataclass(frozen=True, slots=True)
class Work:
    """The requests, ``[requests]`` each.

    Args:
        prompt: tokens of each prompt.
        owners: the profile of each.
        new, mixed_new: tokens that each asks for, see `GeneratePlan`.
        arrivals: from 0, the first, to 1, the last, none earlier than its predecessor.
    """

    prompt: list[int]
    owners: list[int]
    new: list[int]
    mixed_new: list[int]
    arrivals: list[float]

    @property
    def longest(self) -> int:
        """Tokens that the longest sequence can have, prompt and answer together."""
        return max(self.prompt) + max(*self.new, *self.mixed_new)

    @property
    def shortest_first(self) -> list[int]:
        """The requests by the length of their prompts."""
        return sorted(range(len(self.prompt)), key=self.prompt.__getitem__)

    def at_once(self) -> Load:
        """All are there at the beginning."""
        return Load(self.new, [0.0] * len(self.new))

    def staggered(self, seconds: float) -> Load:
        """They come one after the other, the last one after so long."""
        return Load(self.mixed_new, [seconds * each for each in self.arrivals])


def draw_work(plan: GeneratePlan, rng: np.random.Generator) -> Work:
    """Lengths are uniform, the gaps between arrivals exponential; neighbours have different profiles."""
    gaps = rng.exponential(size=plan.requests)
    arrivals = np.cumsum(gaps) - gaps[0]
    if plan.requests > 1:
        arrivals /= arrivals[-1]
    return Work(
        prompt=rng.integers(*plan.prompt, size=plan.requests, endpoint=True).tolist(),
        owners=Popularity("distinct").draw(plan.requests, plan.profiles, rng).tolist(),
        new=[plan.new] * plan.requests,
        mixed_new=rng.integers(*plan.mixed_new, size=plan.requests, endpoint=True).tolist(),
        arrivals=arrivals.tolist(),
    )
