"""One queue per tenant, served in turns: deficit round robin."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum, auto
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from .shares import Shares


class Queued(Protocol):
    """A text to classify or a sequence to go on with. ``tokens`` is what it costs, ``alive`` whether anybody waits."""

    @property
    def tenant(self) -> str: ...

    @property
    def tokens(self) -> int: ...

    @property
    def alive(self) -> bool: ...


Entry = TypeVar("Entry", bound=Queued)

Accept = Callable[[Entry], bool]
"""Is offered an entry and says whether it is taken."""


class DeficitRounds(Generic[Entry]):
    """Each round credits a tenant with a number of tokens; it keeps unused credit while it waits.

    Source: deficit round robin (Shreedhar and Varghese, 1995).

    Args:
        shares: knows the tenants' weights, and is told what each took.
        quantum: tokens that a round credits to a tenant of weight 1.
    Attributes:
        waiting: queued tokens by tenant, those of withdrawn requests included.
    """

    def __init__(self, shares: Shares, quantum: int) -> None:
        self._shares = shares
        self._quantum = quantum
        self._lines: OrderedDict[str, deque[Entry]] = OrderedDict()
        self._deficit: dict[str, float] = {}
        self.waiting: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Whether anything waits, be it of somebody who has gone."""
        return bool(self._lines)

    @property
    def tenants(self) -> AbstractSet[str]:
        """Who waits, in the order of their turns."""
        return self._lines.keys()

    def put(self, entries: Iterable[Entry], *, front: bool = False) -> None:
        """``front`` is for what has waited before."""
        for entry in reversed(list(entries)) if front else entries:
            line = self._lines.setdefault(entry.tenant, deque())
            line.appendleft(entry) if front else line.append(entry)
            self.waiting[entry.tenant] += entry.tokens

    def take(
        self, accept: Accept[Entry], tenants: AbstractSet[str], most: Mapping[str, int] = MappingProxyType({})
    ) -> list[Entry]:
        """Take entries of these tenants in turn, up to the first that is not accepted, which stays the next one.

        Args:
            most: caps on a tenant's tokens; its first entry is always taken. Tenants that are not in it have no cap.
        """
        taken: list[Entry] = []
        had: Counter[str] = Counter()
        turns = deque(tenant for tenant in self._lines if tenant in tenants)
        while turns:
            tenant = turns.popleft()
            match self._turn(tenant, accept, most.get(tenant, sys.maxsize), had, taken):
                case _End.NOT_ACCEPTED:
                    break
                case _End.NO_CREDIT:
                    turns.append(tenant)
        return taken

    def _turn(self, tenant: str, accept: Accept[Entry], most: int, had: Counter[str], taken: list[Entry]) -> _End:
        """``had``: tokens taken already, by tenant."""
        line = self._lines[tenant]
        quantum = self._quantum * self._shares.weight(tenant)
        credit = self._deficit.get(tenant, 0.0) + quantum
        while line:
            entry = line[0]
            tokens = entry.tokens
            if not entry.alive:
                self.waiting[tenant] -= line.popleft().tokens
            elif tokens > credit:
                return self._goes_on(tenant, credit, _End.NO_CREDIT)
            elif had[tenant] and had[tenant] + tokens > most:
                return self._goes_on(tenant, 0.0, _End.ENOUGH)
            elif not accept(entry):
                self._deficit[tenant] = credit - quantum
                return _End.NOT_ACCEPTED
            else:
                taken.append(line.popleft())
                self.waiting[tenant] -= tokens
                self._shares.charge(tenant, tokens)
                credit -= tokens
                had[tenant] += tokens
        del self._lines[tenant], self.waiting[tenant]
        self._deficit.pop(tenant, None)
        return _End.NOTHING_LEFT

    def _goes_on(self, tenant: str, credit: float, end: _End) -> _End:
        """Keep the tenant, as the last of the next round."""
        self._lines.move_to_end(tenant)
        self._deficit[tenant] = credit
        return end


class _End(Enum):
    """Why a tenant's turn was over."""

    NOTHING_LEFT = auto()
    NO_CREDIT = auto()
    ENOUGH = auto()
    NOT_ACCEPTED = auto()
