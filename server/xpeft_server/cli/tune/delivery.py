"""Puts tuned profiles into sinks and journal, in a thread beside the tuning."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from xpeft_profiles import Profile
from xpeft_tuning.journal import Entry, Journal

from .sinks import Sink

_WAITING: Final = 256  # deliveries at most, so that a slow sink slows the tuning down rather than filling the memory


class Delivery:
    """One thread that puts a profile into every sink and then its entry into the journal: disks and servers that
    take milliseconds for each do not hold up the device, and Ctrl-C does not come in between.

    After the first failure nothing more is delivered.

    Attributes: entries: what has been delivered, in that order.
    """

    def __init__(self, sinks: Sequence[Sink], journal: Journal) -> None:
        self.entries: list[Entry] = []
        self._sinks = sinks
        self._journal = journal
        self._failed = False
        self._thread = ThreadPoolExecutor(1, "xpeft-delivery")
        self._waiting: deque[Future[None]] = deque()

    def put(self, entry: Entry, profile: Profile | None) -> None:
        """Args: profile: None if it was refused. Raises: SinkFailed, JournalFailed, of this or an earlier one."""
        self._waiting.append(self._thread.submit(self._deliver, entry, profile))
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > _WAITING):
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait until everything is delivered. Raises: SinkFailed, JournalFailed."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Wait until nothing is being delivered any more."""
        self._thread.shutdown()

    def _deliver(self, entry: Entry, profile: Profile | None) -> None:
        if self._failed:
            return
        try:
            if profile is not None:
                for sink in self._sinks:
                    sink.put(entry.name, profile)
            self._journal.append(entry)
        except BaseException:
            self._failed = True
            raise
        self.entries.append(entry)
