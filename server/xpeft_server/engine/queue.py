"""Accepted work on its way to the device: fair between tenants, bounded batches, nobody who has gone."""

from __future__ import annotations

import sys
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar

from .shares import MARGIN, Shares

PLENTY: Final = 2
"""A tenant has plenty waiting where it would fill one part in so many of a batch."""

GREEDY: Final = 0.75
"""A tenant that had more than its share is greedy where it would fill that part of a batch."""

PART: Final = 4
"""A tenant with plenty waiting, or one that had more than its share, gets at most this fraction (1 / PART) of a batch,
or its share if that is more."""

GROWTH: Final = 1.75
"""While others wait, a tenant that recently had more than its share may take at most GROWTH times its recent fraction
of a batch: a chance backlog drains, and one that suddenly sends ten times as much cannot burst. Simulated: with 1.5 a
tenant that always has nine times its share waits half as long again as others; with 2.5 others feel the first second
of a burst."""

ALONE: Final = 8, 0.010
BESIDE: Final = 64, 0.001
"""Caps on a greedy tenant's tokens, in a batch of its own (ALONE) and in one of others (BESIDE): the batch's budget
divided by the first number, or what the device computes in the second number of seconds, whichever is more; the latter
is plenty on a GPU. A tenant with plenty waiting, or that had more than its share, may have as much beside others."""

_NO_SHARE: Final = 1e-9

_PACE_OF: Final = 0.1  # part of the pace that the last batch makes up


class Queued(Protocol):
    """A text to classify or a sequence to go on with. ``tokens`` is what it costs, ``alive`` whether anybody waits."""

    @property
    def tenant(self) -> str: ...

    @property
    def tokens(self) -> int: ...

    @property
    def alive(self) -> bool: ...


Entry = TypeVar("Entry", bound=Queued)


class FairQueue(Generic[Entry]):
    """Deficit round robin over tenants (Shreedhar and Varghese, 1995): each round gives a tenant a number of tokens.

    A tenant that had more than its share lately goes on with the part that it had, and when ever more of it waits it is
    greedy: then it has its turn when nobody else waits, and a short one, so that a neighbour that sends as fast as it
    can gets what the others leave. Filled by the event loop, emptied by the device thread.

    Args:
        shares: who had how much; queues of one device share it.
        quantum: tokens a tenant of weight 1 may send to the device before the next tenant's turn.
        changed: notified of everything that is put in; queues that one thread waits for share it.
    """

    def __init__(self, shares: Shares, quantum: int = 512, *, changed: threading.Condition | None = None) -> None:
        self._shares = shares
        self._quantum = quantum
        self._changed = changed or threading.Condition()
        self._tenants: OrderedDict[str, deque[Entry]] = OrderedDict()
        self._deficit: dict[str, float] = {}
        self._waiting: Counter[str] = Counter()  # tokens
        self._pace = 0.0  # tokens a second, of long batches
        self.closed = False

    def __bool__(self) -> bool:
        """Whether anything waits, be it of somebody who has gone."""
        return bool(self._tenants)

    def put(self, entries: Iterable[Entry], *, front: bool = False) -> None:
        """``front`` is for what has waited before."""
        with self._changed:
            for entry in reversed(list(entries)) if front else entries:
                line = self._tenants.setdefault(entry.tenant, deque())
                line.appendleft(entry) if front else line.append(entry)
                self._waiting[entry.tenant] += entry.tokens
            self._changed.notify()

    def close(self) -> None:
        """No more batches: `take` returns an empty one."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def take(self, token_budget: int, *, unless: Callable[[], bool] = lambda: False) -> list[Entry]:
        """What is there, up to ``token_budget`` tokens, a longer first entry included. Waits for some.

        Args:
            unless: there is other work, so do not wait; asked again whenever something is put into any queue that
                shares ``changed``.
        """
        with self._changed:
            while not self.closed:
                if batch := self._next_batch(token_budget):
                    return batch
                if unless():
                    return []
                self._changed.wait()
            return []

    def take_ready(self, fits: Callable[[Entry], bool]) -> list[Entry]:
        """Entries in turn up to the first that does not fit, which stays the next one. Never waits.

        Those of tenants ahead of their share come when no other's is left.
        """
        with self._changed:
            ahead = self._ahead()
            taken = self._fill(fits, self._tenants.keys() - ahead)
            return taken + self._fill(fits, ahead) if self._tenants.keys() <= ahead else taken

    def observe(self, tokens: int, seconds: float, token_budget: int) -> None:
        """How long the device took for a batch. The device thread's."""
        if tokens * PART < token_budget:
            return  # it took its time for other things than tokens
        pace = tokens / max(seconds, 1e-9)
        self._pace += pace if not self._pace else _PACE_OF * (pace - self._pace)

    def _next_batch(self, token_budget: int) -> list[Entry]:
        ahead = self._ahead()
        plenty = {tenant for tenant in self._tenants if self._waiting[tenant] * PLENTY > token_budget}
        greedy = {tenant for tenant in ahead if self._waiting[tenant] > GREEDY * token_budget}
        most = self._most(token_budget, plenty, ahead)
        batch = self._fill(_within(token_budget), self._tenants.keys() - greedy, most)
        if not batch:
            return self._fill(_within(self._part(token_budget, ALONE)), greedy)
        left = min(self._part(token_budget, BESIDE), token_budget - sum(entry.tokens for entry in batch))
        return batch + self._fill(_within(left, longer_first=False), greedy & self._tenants.keys())

    def _most(self, token_budget: int, plenty: AbstractSet[str], ahead: AbstractSet[str]) -> dict[str, int]:
        """Tokens of those in a batch who would fill it.

        Where others wait, who has plenty gets what keeps its part of the batch at its share: one that has not had its
        share yet catches up over many batches, since a burst in one is what all others in it wait for. Who had more
        than its share gets a little more than what keeps its part at what it was lately.
        """
        shares = {tenant: self._shares.share(tenant) for tenant in plenty | ahead}
        most = {tenant: token_budget * max(1 / PART, share) for tenant, share in shares.items()}
        together = sum(shares[tenant] for tenant in plenty)
        others = sum(tokens for tenant, tokens in self._waiting.items() if tenant not in plenty)
        least = self._part(token_budget, BESIDE)
        for tenant in plenty - ahead:
            most[tenant] = min(most[tenant], token_budget * shares[tenant] / together)
            if others:
                beside = MARGIN * others * shares[tenant] / max(1.0 - together, _NO_SHARE)
                most[tenant] = min(most[tenant], max(least, beside))
        if behind := sum(tokens for tenant, tokens in self._waiting.items() if tenant not in ahead):
            had = {tenant: self._shares.part(tenant) for tenant in ahead}
            batch = behind / max(1.0 - sum(had.values()), _NO_SHARE)
            for tenant in ahead:
                most[tenant] = min(most[tenant], max(least, GROWTH * had[tenant] * batch))
        return {tenant: int(tokens) for tenant, tokens in most.items()}

    def _part(self, token_budget: int, part: tuple[int, float]) -> int:
        """Tokens."""
        one_in, seconds = part
        return min(token_budget, max(token_budget // one_in, int(self._pace * seconds)))

    def _ahead(self) -> set[str]:
        self._shares.enter(self._tenants)
        return {tenant for tenant in self._tenants if self._shares.is_ahead(tenant)}

    def _fill(
        self, fits: Callable[[Entry], bool], tenants: AbstractSet[str], most: Mapping[str, int] = MappingProxyType({})
    ) -> list[Entry]:
        """Of these tenants, in turn. ``most``: tokens of those that may not have as many as fit; a first entry may."""
        batch: list[Entry] = []
        had: Counter[str] = Counter()
        turns = deque(tenant for tenant in self._tenants if tenant in tenants)
        while turns:
            tenant = turns.popleft()
            match self._turn(tenant, fits, most.get(tenant, sys.maxsize), had, batch):
                case _End.FULL:
                    break
                case _End.NO_CREDIT:
                    turns.append(tenant)
        return batch

    def _turn(
        self, tenant: str, fits: Callable[[Entry], bool], most: int, had: Counter[str], batch: list[Entry]
    ) -> _End:
        """``had``: tokens that each has in the batch already."""
        line = self._tenants[tenant]
        quantum = self._quantum * self._shares.weight(tenant)
        credit = self._deficit.get(tenant, 0.0) + quantum
        while line:
            entry = line[0]
            tokens = entry.tokens
            if not entry.alive:
                self._waiting[tenant] -= line.popleft().tokens
            elif tokens > credit:
                return self._goes_on(tenant, credit, _End.NO_CREDIT)
            elif had[tenant] and had[tenant] + tokens > most:
                return self._goes_on(tenant, 0.0, _End.ENOUGH)
            elif not fits(entry):
                self._deficit[tenant] = credit - quantum
                return _End.FULL
            else:
                batch.append(line.popleft())
                self._waiting[tenant] -= tokens
                self._shares.charge(tenant, tokens)
                credit -= tokens
                had[tenant] += tokens
        del self._tenants[tenant], self._waiting[tenant]
        self._deficit.pop(tenant, None)
        return _End.NOTHING_LEFT

    def _goes_on(self, tenant: str, credit: float, end: _End) -> _End:
        """Last in the next round."""
        self._tenants.move_to_end(tenant)
        self._deficit[tenant] = credit
        return end


class _End(Enum):
    """Why a tenant's turn was over."""

    NOTHING_LEFT = auto()
    NO_CREDIT = auto()
    ENOUGH = auto()
    FULL = auto()


def _within(token_budget: int, *, longer_first: bool = True) -> Callable[[Queued], bool]:
    """Whether an entry fits into the budget beside those that did before; a longer one may be the first."""
    used = 0

    def fits(entry: Queued) -> bool:
        nonlocal used
        room = (longer_first and not used) or used + entry.tokens <= token_budget
        used += entry.tokens if room else 0
        return room

    return fits
