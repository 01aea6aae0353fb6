"""How many tokens of each sequence a step computes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from .sequence import Sequence

_PREFILL_SHARE = 4
"""Prefills get one token in so many of the budget, however many sequences decode."""


class StepPart(NamedTuple):
    """A sequence in a step, and how many of its uncached tokens are computed."""

    sequence: Sequence
    length: int

    @property
    def asks(self) -> bool:
        """Whether its next token is sampled: the step computes all that is left."""
        return self.length == self.sequence.uncached


def share_budget(running: Collection[Sequence], max_tokens: int, is_ahead: Callable[[str], bool]) -> list[StepPart]:
    """One token for each decode; what is left of the budget goes to prefills, in order of arrival.

    Args: is_ahead: whether a tenant had more than its share; its prefills come after everybody else's.
    """
    parts = [StepPart(sequence, 1) for sequence in running if sequence.uncached == 1]
    left = max(max_tokens - len(parts), max_tokens // _PREFILL_SHARE)
    prefills = [sequence for sequence in running if sequence.uncached > 1]
    for sequence in sorted(prefills, key=lambda each: is_ahead(each.tenant)):
        if left:
            parts.append(StepPart(sequence, min(sequence.uncached, left)))
            left -= parts[-1].length
    return parts
