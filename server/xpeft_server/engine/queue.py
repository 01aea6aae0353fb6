"""Accepted work on its way to the device: fair between tenants, bounded batches, nobody who has gone."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar


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
    """Deficit round robin over tenants (Shreedhar and Varghese, 1995): each round gives a tenant ``quantum`` tokens.

    Filled by the event loop, emptied by the device thread.

    Args:
        quantum: tokens a tenant may send to the device before the next tenant's turn.
        changed: notified of everything that is put in; queues that one thread waits for share it.
    """

    def __init__(self, quantum: int = 512, *, changed: threading.Condition | None = None) -> None:
        self._quantum = quantum
        self._changed = changed or threading.Condition()
        self._tenants: OrderedDict[str, deque[Entry]] = OrderedDict()
        self._deficit: dict[str, int] = {}
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
                used = 0

                def fits(entry: Entry) -> bool:
                    nonlocal used
                    room = not used or used + entry.tokens <= token_budget
                    used += entry.tokens if room else 0
                    return room

                batch = self._fill(fits)
                if batch or unless():
                    return batch
                self._changed.wait()
            return []

    def take_ready(self, fits: Callable[[Entry], bool]) -> list[Entry]:
        """Entries in turn up to the first that does not fit, which stays the next one. Never waits."""
        with self._changed:
            return self._fill(fits)

    def _fill(self, fits: Callable[[Entry], bool]) -> list[Entry]:
        batch: list[Entry] = []
        while self._tenants:
            tenant, line = next(iter(self._tenants.items()))
            credit = self._deficit.get(tenant, 0) + self._quantum
            while line:
                if not line[0].alive:
                    line.popleft()
                    continue
                tokens = line[0].tokens
                if tokens > credit:
                    break
                if not fits(line[0]):
                    self._deficit[tenant] = credit - self._quantum
                    return batch
                batch.append(line.popleft())
                credit -= tokens
            self._end_turn(tenant, credit)
        return batch

    def _end_turn(self, tenant: str, credit: int) -> None:
        """Last in the round while it has something waiting, else out; a tenant saves no credit for later."""
        if self._tenants[tenant]:
            self._tenants.move_to_end(tenant)
            self._deficit[tenant] = credit
        else:
            del self._tenants[tenant]
            self._deficit.pop(tenant, None)
