"""Who makes way for a sequence that waits."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as List
from typing import Final

from ..fairness.shares import Shares
from .sequence import Sequence

_PAID: Final = 8
"""Who is ahead makes way for another once it has written a token for so many that it would read again."""


def yielding(sequence: Sequence, running: List[Sequence], shares: Shares) -> Iterator[Sequence]:
    """Those of tenants that are ahead of their share, for one of a tenant that is not; who came last is first.

    They must have paid for what is read again: to be taken in is charged at once, so that two tenants could take
    room from each other before either has written anything.
    """
    candidates = [] if shares.is_ahead(sequence.tenant) else running
    paid = (each for each in reversed(candidates) if (len(each.ids) - each.to_read) * _PAID >= each.to_read)
    return (each for each in paid if shares.is_ahead(each.tenant))
