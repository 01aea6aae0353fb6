"""The audit log: who wrote what, and who was refused, a line of JSON each."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import orjson

from xpeft_server.log_lines import field_without_secrets

log = logging.getLogger(__name__)
lines_log = logging.getLogger("xpeft.audit")

REFUSED_PER_SECOND: Final = 10
_MOST_WAITING: Final = 10_000  # lines that have not been written yet
_BATCH: Final = 1_000
_CLOSING_SECONDS: Final = 0.5

Entry = Mapping[str, object]


class AuditSink(Protocol):
    def write(self, lines: Sequence[bytes]) -> None:
        """Keep these lines, each of which ends with a newline. Raises: OSError."""

    def close(self) -> None:
        """There are no more."""


class AuditLogger:
    """Gives the lines to the logger ``xpeft.audit``, at INFO."""

    def write(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            lines_log.info("%s", line.decode().rstrip("\n"))

    def close(self) -> None:
        pass


class AuditLog:
    """Takes entries without waiting and has them written by a thread of its own, in their order.

    Of those who are refused only ``REFUSED_PER_SECOND`` get a line, for each status apart, and then one line says how
    many got none: a flood of wrong keys shall not fill the disk. Where the sink fails or cannot keep up, lines are
    lost; that is logged, and a line says how many.

    Args:
        now: clock in seconds for that limit.
    """

    def __init__(self, sink: AuditSink, *, now: Callable[[], float] = time.monotonic) -> None:
        self._sink = sink
        self._now = now
        self._waiting: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._windows: dict[int, tuple[int, int]] = {}  # status → second, lines in it
        self._left_out: dict[int, int] = {}
        self._lost = 0
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="xpeft-audit", daemon=True)
        self._thread.start()

    def write(self, entry: Entry) -> None:
        """Keep an entry; its time is now."""
        if self._waiting.qsize() >= _MOST_WAITING:
            with self._lock:
                self._lost += 1
            return
        self._waiting.put({"time": _utc(), **entry})

    def refused(self, status: int, entry: Entry) -> None:
        """Keep an entry of one who was refused, if this second has room for it."""
        second = int(self._now())
        last, lines = self._windows.get(status, (second, 0))
        lines = lines + 1 if last == second else 1
        self._windows[status] = second, lines
        if lines <= REFUSED_PER_SECOND:
            self.write(entry)
            return
        with self._lock:
            first = not self._left_out
            self._left_out[status] = self._left_out.get(status, 0) + 1
        if first:
            # Wakes the thread, which tells the count when a second is over.
            self._waiting.put({})

    def close(self) -> None:
        """Write what waits and close the sink, in half a second at most."""
        self._waiting.put(None)
        self._thread.join(_CLOSING_SECONDS)

    def _work(self) -> None:
        ends = False
        tell_at: float | None = None
        while not ends:
            entries: list[Entry | None] = []
            try:
                timeout = None if tell_at is None else max(0.0, tell_at - time.monotonic())
                entries.append(self._waiting.get(timeout=timeout))
                while len(entries) < _BATCH:
                    entries.append(self._waiting.get_nowait())
            except queue.Empty:
                pass
            ends = None in entries
            if {} in entries and tell_at is None:
                tell_at = time.monotonic() + 1.0
            written = [entry for entry in entries if entry]
            if ends or (tell_at is not None and time.monotonic() >= tell_at):
                tell_at = None
                written += self._take_left_out()
            if written:
                self._keep(written)
        self._sink.close()

    def _keep(self, entries: list[Entry]) -> None:
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            entries = [*entries, {"time": _utc(), "action": "lines_lost", "lost": lost}]
        try:
            self._sink.write([_line(entry) for entry in entries])
        except OSError as error:
            with self._lock:
                self._lost += lost + len(entries) - bool(lost)
            if not self._failing:
                log.error("the audit log cannot be written, its lines are lost until it can: %s", error)
            self._failing = True
        else:
            if self._failing:
                log.error("the audit log is written again; %d lines were lost", lost)
            self._failing = False

    def _take_left_out(self) -> list[Entry]:
        with self._lock:
            left_out, self._left_out = self._left_out, {}
        return [
            {"time": _utc(), "action": "refusals_left_out", "status": status, "left_out": count}
            for status, count in left_out.items()
        ]


def _line(entry: Entry) -> bytes:
    return orjson.dumps({name: field_without_secrets(value) for name, value in entry.items()}) + b"\n"


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
