"""Accepted work on its way to the device: fair between tenants, in bounded batches, without withdrawn requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic

from .batch_policy import BatchPolicy
from .deficit_rounds import Accept, DeficitRounds, Entry, Queued
from .shares import Shares


class FairQueue(Generic[Entry]):
    """Tenants take turns, and none gets more of a batch than is fair.

    The event loop fills it, the device thread empties it.

    Args:
        shares: who had how much; shared by the queues of one device.
        quantum: tokens a tenant of weight 1 may send to the device before the next tenant's turn.
        changed: notified of everything that is put in; shared by queues that one thread waits for.
    """

    def __init__(self, shares: Shares, quantum: int = 512, *, changed: threading.Condition | None = None) -> None:
        self._rounds = DeficitRounds[Entry](shares, quantum)
        self._policy = BatchPolicy(shares)
        self._changed = changed or threading.Condition()
        self.closed = False

    def __bool__(self) -> bool:
        """Whether anything waits, be it of somebody who has gone."""
        return bool(self._rounds)

    def put(self, entries: Iterable[Entry], *, front: bool = False) -> None:
        """``front`` is for what has waited before."""
        with self._changed:
            self._rounds.put(entries, front=front)
            self._changed.notify()

    def close(self) -> None:
        """No more batches: `take` returns an empty one."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def take(self, token_budget: int, *, unless: Callable[[], bool] = lambda: False) -> list[Entry]:
        """The next batch, of up to ``token_budget`` tokens; a longer first entry is taken alone. Waits if empty.

        Args:
            unless: whether there is other work, so that it must not wait. Asked again whenever something is put into
                any queue that shares ``changed``.
        """
        with self._changed:
            while not self.closed:
                if batch := self._next_batch(token_budget):
                    return batch
                if unless():
                    return []
                self._changed.wait()
            return []

    def offer(self, accept: Accept[Entry]) -> list[Entry]:
        """Offer entries in turn, up to the first that is not accepted, which stays the next one. Never waits.

        Tenants ahead of their share come after all others.
        Returns: those that were accepted.
        """
        with self._changed:
            ahead = self._policy.ahead(self._rounds.tenants)
            accepted = self._rounds.take(accept, self._rounds.tenants - ahead)
            if self._rounds.tenants <= ahead:
                accepted += self._rounds.take(accept, ahead)
            return accepted

    def observe(self, tokens: int, seconds: float, token_budget: int) -> None:
        """How long the device took for a batch. The device thread's."""
        self._policy.observe(tokens, seconds, token_budget)

    def _next_batch(self, token_budget: int) -> list[Entry]:
        turns = self._policy.turns(self._rounds.waiting, token_budget)
        batch = self._rounds.take(_within(token_budget), turns.first, turns.most)
        if not batch:
            return self._rounds.take(_within(turns.alone), turns.greedy)
        left = min(turns.beside, token_budget - sum(entry.tokens for entry in batch))
        return batch + self._rounds.take(_within(left, longer_first=False), turns.greedy)


def _within(token_budget: int, *, longer_first: bool = True) -> Callable[[Queued], bool]:
    """Accepts entries while they fit into the budget; with ``longer_first`` the first is accepted whatever its size."""
    used = 0

    def accept(entry: Queued) -> bool:
        nonlocal used
        room = (longer_first and not used) or used + entry.tokens <= token_budget
        used += entry.tokens if room else 0
        return room

    return accept
