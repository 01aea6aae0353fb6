"""The thread that writes to a SQLite file; writes that wait for it share a transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from .database import transaction

T = TypeVar("T")
MOST_TOGETHER = 256
"""Calls in one transaction."""


class Call(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    done: Future[Any]


class WriteLane:
    """A connection and the one thread that uses it; calls run in order.

    Calls that wait while the thread commits share the next transaction and its one sync to the disk. A call that raises
    is rolled back alone and does not affect the others. Calls return after the commit; if it fails, all calls that
    shared it fail, and nothing of theirs is written.

    Args: committed: called in the thread after each commit; what it raises is raised to all calls that shared it.
    """

    def __init__(
        self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, *, committed: Callable[[], None]
    ) -> None:
        self.connection = connection
        self.thread = thread
        self._committed = committed
        self._waiting: deque[Call] = deque()

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """``work`` runs inside a transaction. Raises: what it raises; sqlite3.Error."""
        done: Future[T] = Future()
        self._waiting.append(Call(work, done))
        # One turn of the thread for each call; turns whose call was done by an earlier one find nothing to do.
        self.thread.submit(self._commit)
        return await asyncio.wrap_future(done)

    def _commit(self) -> None:
        calls = self._taken()
        if not calls:
            return
        try:
            with transaction(self.connection):
                ends = [self._end_of(call) for call in calls]
            self._committed()
        except BaseException as error:
            for call in calls:
                call.done.set_exception(error)
            return
        for end in ends:
            end()

    def _taken(self) -> list[Call]:
        """The next calls, without cancelled ones."""
        calls: list[Call] = []
        while self._waiting and len(calls) < MOST_TOGETHER:
            call = self._waiting.popleft()
            if call.done.set_running_or_notify_cancel():
                calls.append(call)
        return calls

    def _end_of(self, call: Call) -> Callable[[], None]:
        """Do the work. Returns: a function that passes the result to the caller."""
        self.connection.execute("SAVEPOINT call")
        try:
            value = call.work(self.connection)
        except Exception as error:
            refusal = error
            if not self.connection.in_transaction:
                # SQLite rolled back the whole transaction by itself, including the calls before this one.
                raise
            self.connection.execute("ROLLBACK TO call")
            self.connection.execute("RELEASE call")
            return lambda: call.done.set_exception(refusal)
        self.connection.execute("RELEASE call")
        return lambda: call.done.set_result(value)
