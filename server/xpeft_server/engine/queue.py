"""Accepted texts on their way to the device: fair between tenants, bounded batches, nobody who has gone."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable

from .ticket import Entry


class FairQueue:
    """Deficit round robin over tenants (Shreedhar and Varghese, 1995): each round gives a tenant ``quantum`` tokens.

    Filled by the event loop, emptied by the device thread.

    Args:
        quantum: tokens a tenant may send to the device before the next tenant's turn.
    """

    def __init__(self, quantum: int = 512) -> None:
        self._quantum = quantum
        self._changed = threading.Condition()
        self._tenants: OrderedDict[str, deque[Entry]] = OrderedDict()
        self._deficit: dict[str, int] = {}
        self._closed = False

    def put(self, entries: Iterable[Entry], *, front: bool = False) -> None:
        """``front`` is for texts that have waited before."""
        with self._changed:
            for entry in reversed(list(entries)) if front else entries:
                line = self._tenants.setdefault(entry.ticket.tenant, deque())
                line.appendleft(entry) if front else line.append(entry)
            self._changed.notify()

    def close(self) -> None:
        """No more batches: `take` returns an empty one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, token_budget: int) -> list[Entry]:
        """Wait for texts, then take what is there up to ``token_budget`` tokens, a longer first text included."""
        with self._changed:
            while not self._closed:
                batch = self._fill(token_budget)
                if batch:
                    return batch
                self._changed.wait()
            return []

    def _fill(self, budget: int) -> list[Entry]:
        batch: list[Entry] = []
        used = 0
        while self._tenants:
            tenant, line = next(iter(self._tenants.items()))
            credit = self._deficit.get(tenant, 0) + self._quantum
            while line:
                if not line[0].alive:
                    line.popleft()
                    continue
                tokens = len(line[0].text)
                if tokens > credit:
                    break
                if batch and used + tokens > budget:
                    self._deficit[tenant] = credit - self._quantum
                    return batch
                batch.append(line.popleft())
                used, credit = used + tokens, credit - tokens
            self._end_turn(tenant, credit)
        return batch

    def _end_turn(self, tenant: str, credit: int) -> None:
        """Last in the round while it has texts waiting, else out; a tenant saves no credit for later."""
        if self._tenants[tenant]:
            self._tenants.move_to_end(tenant)
            self._deficit[tenant] = credit
        else:
            del self._tenants[tenant]
            self._deficit.pop(tenant, None)
