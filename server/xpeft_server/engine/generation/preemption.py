"""Which running sequences may be preempted for one that waits."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as List
from typing import Final

from ..fairness.shares import Shares
from .sequence import Sequence

_PREFILL_PER_TOKEN: Final = 8
"""A sequence can be preempted once it has generated one token for so many that its next prefill would read again."""


def preemptible(waiting: Sequence, running: List[Sequence], shares: Shares) -> Iterator[Sequence]:
    """Sequences of tenants that are ahead of their share, newest first; none if the waiting one's tenant is ahead too.

    Each must have paid for its next prefill. Admission charges a whole prompt at once, so without that rule two tenants
    could preempt each other before either has generated anything.
    """
    candidates = [] if shares.is_ahead(waiting.tenant) else running
    for each in reversed(candidates):
        generated = len(each.ids) - each.admitted_length
        if generated * _PREFILL_PER_TOKEN >= each.admitted_length and shares.is_ahead(each.tenant):
            yield each
