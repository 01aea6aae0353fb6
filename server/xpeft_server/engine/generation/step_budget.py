"""How many tokens of each sequence a step reads."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from .sequence import Sequence

_LEAST_SHARE = 4
"""However many write, prompts get one token in so many of the budget."""


class StepPart(NamedTuple):
    """A sequence in a step: how many of its unread tokens are read."""

    sequence: Sequence
    length: int

    @property
    def asks(self) -> bool:
        return self.length == self.sequence.unread


def share_budget(running: Collection[Sequence], max_tokens: int, is_ahead: Callable[[str], bool]) -> list[StepPart]:
    """One token for who writes; what is left of the budget for who still reads, in the order of their coming.

    Args: is_ahead: whether a tenant had more than its share; its prompts are read when no other's are left.
    """
    parts = [StepPart(sequence, 1) for sequence in running if sequence.unread == 1]
    left = max(max_tokens - len(parts), max_tokens // _LEAST_SHARE)
    reading = [sequence for sequence in running if sequence.unread > 1]
    for sequence in sorted(reading, key=lambda each: is_ahead(each.tenant)):
        if left:
            parts.append(StepPart(sequence, min(sequence.unread, left)))
            left -= parts[-1].length
    return parts
