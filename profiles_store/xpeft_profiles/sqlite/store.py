"""``sqlite://``: profiles in one durable file, the embedded default."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from ..errors import StoreUnavailable
from ..jobs.store import JobStore
from ..listing import check_limit, decode_cursor
from ..names import ProfileKey, check_keys, check_name
from ..profile import Profile
from ..record.writer import encode_record
from ..store import NO_CONDITION, KeyedRecord, ListPage, Match, PutOutcome, StoredProfile
from . import database
from .damaged_pages import UNREADABLE, check_readable
from .files import SqliteFiles
from .job_store import SqliteJobStore
from .log import WriteAheadLog
from .version_cache import VersionCache
from .write_lane import WriteLane

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
TENANTS_AT_ONCE = 1000


class Lane(NamedTuple):
    """A connection and the one thread that uses it."""

    connection: sqlite3.Connection
    thread: ThreadPoolExecutor


class OpenFile(NamedTuple):
    """``lister`` walks many rows, so that nothing that a batch or a probe asks ``reader`` waits behind a list."""

    reader: Lane
    lister: Lane
    writer: WriteLane
    cache: VersionCache
    check: Callable[[], None]
    """Raises: StoreUnavailable where the connections have lost their files."""


class SqliteStore:
    """One file in WAL mode: readers and the writer do not wait for each other, a commit is on the disk.

    Writes that come together share a commit, see `WriteLane`.

    Args:
        path: the file; its folder must exist.
        busy_seconds: how long a write may wait for another process's write.
        clock: seconds since 1970.
        read_only: the file is read as it is; none is made, its writers' lock is not taken, and writes are refused.
    """

    scheme = "sqlite"

    def __init__(
        self,
        path: Path,
        *,
        busy_seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
    ) -> None:
        self._path = path.absolute()
        self._busy_seconds = busy_seconds
        self._clock = clock
        self._read_only = read_only
        self.jobs: JobStore = SqliteJobStore(self._read, self._walk, self._write, clock)
        self._opening = asyncio.Lock()
        self._file: OpenFile | None = None
        self._damage_told = False

    async def open(self) -> None:
        """Does nothing if it is open."""
        async with self._opening:
            if self._file is None:
                self._file = await self._open_file()

    async def _open_file(self) -> OpenFile:
        reader = ThreadPoolExecutor(1, "xpeft-sqlite-reader")
        lister = ThreadPoolExecutor(1, "xpeft-sqlite-lister")
        writer = ThreadPoolExecutor(1, "xpeft-sqlite-writer")
        opened: list[sqlite3.Connection] = []

        def connect() -> Callable[[], None]:
            if self._read_only:
                opened.extend(database.connect_read_only(self._path, self._busy_seconds) for _ in range(4))
                return lambda: None
            opened.append(database.connect_writer(self._path, self._busy_seconds))
            opened.append(database.connect_reader(self._path, self._busy_seconds))
            opened.append(database.connect_reader(self._path, self._busy_seconds))
            opened.append(database.connect_reader(self._path, 0.0))
            return SqliteFiles(self._path).check

        try:
            check = await self._in_thread(writer, connect)
        except BaseException:
            for connection in opened:
                connection.close()
            for thread in (reader, lister, writer):
                thread.shutdown(wait=False)
            raise
        to_write, to_read, to_list, probe = opened
        log = WriteAheadLog(self._path, to_write, self._busy_seconds)

        def committed() -> None:
            check()
            log.cut()

        return OpenFile(
            Lane(to_read, reader),
            Lane(to_list, lister),
            WriteLane(to_write, writer, committed=committed),
            VersionCache(probe),
            check,
        )

    async def get(self, key: ProfileKey) -> StoredProfile | None:
        (stored,) = await self.get_many([key])
        return stored

    async def get_many(self, keys: Sequence[ProfileKey]) -> list[StoredProfile | None]:
        found = await self._read(database.get_many, keys)
        if UNREADABLE in found and not self._damage_told:
            tenant, name = keys[found.index(UNREADABLE)]
            logger.error("%s has a damaged page: what lies there is lost, as %r of tenant %r", self._path, name, tenant)
            self._damage_told = True
        return found

    async def versions(self, keys: Sequence[ProfileKey]) -> list[str | None]:
        """What is known since the last change of the file is answered at once, the rest is read in the thread."""
        try:
            known = self._opened().cache.current()
        except sqlite3.Error:
            # The probe never waits: a lock that is held for a moment makes the reader ask, which may wait.
            known = {}
        unknown = [key for key in keys if key not in known]
        if unknown:
            found = await self._read(database.get_versions, unknown)
            known.update(zip(unknown, found, strict=True))
        return [known[key] for key in keys]

    async def put(
        self, key: ProfileKey, profile: Profile, *, match: Match = NO_CONDITION, most: int | None = None
    ) -> PutOutcome:
        check_name(key.tenant, param="tenant")
        check_name(key.name)
        record = encode_record(profile)
        return await self._write(database.put, key, profile.version, record, match, most, self._clock())

    async def put_many(self, records: Sequence[KeyedRecord], *, replace: bool = True) -> list[PutOutcome]:
        check_keys(record.key for record in records)
        return await self._write(database.put_many, records, replace, self._clock())

    async def delete(self, key: ProfileKey, *, match: Match = NO_CONDITION) -> bool:
        return await self._write(database.delete, key, match)

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None, prefix: str = "") -> ListPage:
        check_limit(limit)
        return await self._walk(database.page, tenant, decode_cursor(cursor), prefix, limit)

    async def tenants(self) -> AsyncIterator[str]:
        after = ""
        while some := await self._walk(database.tenants, after, TENANTS_AT_ONCE):
            for tenant in some:
                yield tenant
            after = some[-1]

    async def ping(self) -> None:
        await self._read(check_readable)

    async def close(self) -> None:
        """Waits for what was begun."""
        file, self._file = self._file, None
        if file is None:
            return
        file.cache.close()
        for connection, thread in (file.reader, file.lister, (file.writer.connection, file.writer.thread)):
            await self._in_thread(thread, connection.close)
            thread.shutdown(wait=False)

    def _opened(self) -> OpenFile:
        if self._file is None:
            raise StoreUnavailable(f"the store {self._path} is not open")
        self._file.check()
        return self._file

    async def _read(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        lane = self._opened().reader
        return await self._in_thread(lane.thread, lambda: work(lane.connection, *args, **kwargs))

    async def _walk(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """A read of many rows, which only its like wait for."""
        lane = self._opened().lister
        return await self._in_thread(lane.thread, lambda: work(lane.connection, *args, **kwargs))

    async def _write(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """``work`` runs inside a transaction."""
        lane = self._opened().writer
        with self._failures_named():
            return await lane.write(lambda connection: work(connection, *args, **kwargs))

    async def _in_thread(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        with self._failures_named():
            return await asyncio.get_running_loop().run_in_executor(thread, work)

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"the store {self._path} failed: {error}") from error
