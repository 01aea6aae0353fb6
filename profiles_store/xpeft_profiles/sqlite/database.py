"""The SQLite file: schema, connections and statements. Everything here blocks; the store calls it in its threads."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from operator import itemgetter
from pathlib import Path

from ..errors import StoreUnavailable, TooManyProfiles
from ..listing import PAGE_BYTES, page_of
from ..names import ProfileKey
from ..store import KeyedRecord, ListPage, Match, PutOutcome, StoredProfile
from .damaged_pages import UNREADABLE, check_readable, is_damage
from .jobs import SCHEMA as JOBS_SCHEMA

# "xpef" in the file's header says whose database it is.
APPLICATION_ID = 0x78706566
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE profiles (
    tenant  TEXT NOT NULL,
    name    TEXT NOT NULL,
    version TEXT NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    record  BLOB NOT NULL,
    PRIMARY KEY (tenant, name)
)
"""
GET = "SELECT version, record, created, updated FROM profiles WHERE tenant = ? AND name = ?"
GET_VERSION = "SELECT version FROM profiles WHERE tenant = ? AND name = ?"
GET_FOR_PUT = "SELECT version, created, updated, record = ? FROM profiles WHERE tenant = ? AND name = ?"
PUT = """
INSERT INTO profiles (tenant, name, version, created, updated, record) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (tenant, name) DO UPDATE SET
    version = excluded.version, updated = excluded.updated, record = excluded.record
"""
# A JSON list of [tenant, name] → those of them that are there.
GET_FOR_PUT_MANY = """
SELECT tenant, name, version, record, created, updated FROM json_each(?) AS asked CROSS JOIN profiles
ON tenant = json_extract(asked.value, '$[0]') AND name = json_extract(asked.value, '$[1]')
"""
COUNT = "SELECT count(*) FROM (SELECT 1 FROM profiles WHERE tenant = ? LIMIT ?)"
DELETE = "DELETE FROM profiles WHERE tenant = ? AND name = ?"
# Names are compared byte by byte; no character sorts behind U+10FFFF.
OF_A_PAGE = """
FROM profiles WHERE tenant = ? AND name > ? AND name >= ? AND name < ? || char(0x10FFFF) ORDER BY name LIMIT ?
"""
PAGE = f"SELECT name, version, record, created, updated {OF_A_PAGE}"
# From the index of the primary key alone, which may be whole where a record's page is not.
NAMES = f"SELECT name {OF_A_PAGE}"
# From one tenant to the next through the primary key, however many profiles lie between.
TENANTS = """
WITH RECURSIVE found (tenant) AS (
    SELECT min(tenant) FROM profiles WHERE tenant > ?
    UNION ALL
    SELECT (SELECT min(tenant) FROM profiles WHERE tenant > found.tenant) FROM found WHERE found.tenant IS NOT NULL
)
SELECT tenant FROM found WHERE tenant IS NOT NULL LIMIT ?
"""


def connect_writer(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """The one connection that writes; it makes the file and the tables if need be.

    Raises: sqlite3.Error; StoreUnavailable if the file belongs to another program or a newer server.
    """
    connection = _connect(path, busy_seconds)
    try:
        with transaction(connection):
            _ensure_schema(connection, path)
            connection.execute(JOBS_SCHEMA)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreUnavailable(f"{path} cannot be put into WAL mode, it stays in {mode!r}")
        # FULL: a commit is on the disk before it is acknowledged (NORMAL would lose it in a power cut).
        connection.execute("PRAGMA synchronous = FULL")
        # The first read makes the write-ahead log and its index, if they are not there.
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection that cannot write. ``busy_seconds``: how long it may wait for a lock, rarely ever needed in WAL."""
    connection = _connect(path, busy_seconds)
    connection.execute("PRAGMA query_only = ON")
    return connection


def connect_read_only(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection for who makes no file, takes no writer's lock and changes nothing.

    Raises: sqlite3.Error; StoreUnavailable if the file is empty, or belongs to another program or a newer server.
    """
    mode = "immutable=1" if _cannot_change(path) else "mode=rw"
    connection = _connect(f"{path.as_uri()}?{mode}", busy_seconds)
    try:
        connection.execute("PRAGMA query_only = ON")
        if _is_empty(connection):
            raise StoreUnavailable(f"{path} is empty: it has never been a store")
        _check_schema(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _cannot_change(path: Path) -> bool:
    """On a read-only file system SQLite cannot make the log's index; without a log the file is all there is."""
    try:
        fixed = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False  # What is wrong with the file or its name is said when it is opened.
    return fixed and not Path(f"{path.resolve()}-wal").exists()


def _connect(path: Path | str, busy_seconds: float) -> sqlite3.Connection:
    """Args: path: as a string, a URI."""
    # Each connection is used by one thread at a time, but is opened and closed by others.
    return sqlite3.connect(
        path, timeout=busy_seconds, isolation_level=None, check_same_thread=False, uri=isinstance(path, str)
    )


def _ensure_schema(connection: sqlite3.Connection, path: Path) -> None:
    if _is_empty(connection):
        connection.execute(SCHEMA)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    else:
        _check_schema(connection, path)


def _is_empty(connection: sqlite3.Connection) -> bool:
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return bool(owner == 0 and tables == 0)


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if owner != APPLICATION_ID:
        raise StoreUnavailable(f"{path} is the database of another program (application_id {owner:#x})")
    if version != SCHEMA_VERSION:
        raise StoreUnavailable(f"{path} has schema {version}, this server knows schema {SCHEMA_VERSION}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and nobody else writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def get_many(connection: sqlite3.Connection, keys: Sequence[ProfileKey]) -> list[StoredProfile | None]:
    """Those on a damaged page are `UNREADABLE`."""
    rows = _look_up(connection, GET, keys)
    return [None if row is None else StoredProfile(*row) for row in rows]


def get_versions(connection: sqlite3.Connection, keys: Sequence[ProfileKey]) -> list[str | None]:
    return [None if row is None else row[0] for row in _look_up(connection, GET_VERSION, keys)]


def _look_up(
    connection: sqlite3.Connection, statement: str, keys: Sequence[ProfileKey]
) -> list[tuple[str, bytes, float, float] | None]:
    # One snapshot for all: consistent, and cheaper than one for each.
    connection.execute("BEGIN")
    try:
        with closing(connection.cursor()) as cursor:
            return [_row(cursor, statement, key) for key in keys]
    finally:
        # Nothing was written; after a damaged page a COMMIT would fail.
        connection.execute("ROLLBACK")


def _row(cursor: sqlite3.Cursor, statement: str, key: ProfileKey) -> tuple[str, bytes, float, float] | None:
    try:
        row: tuple[str, bytes, float, float] | None = cursor.execute(statement, key).fetchone()
        return row
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        check_readable(cursor.connection)
        return UNREADABLE


def put(
    connection: sqlite3.Connection,
    key: ProfileKey,
    version: str,
    record: bytes,
    match: Match,
    most: int | None,
    now: float,
) -> PutOutcome:
    """Inside a transaction. Raises: PreconditionFailed, TooManyProfiles."""
    there = connection.execute(GET_FOR_PUT, (record, *key)).fetchone()
    same_version = there is not None and there[0] == version
    match.check(there and there[0], damaged=same_version and not there[3])
    if same_version and there[3]:
        return PutOutcome(version, "identical", there[1], there[2])
    if there is None and most is not None:
        (count,) = connection.execute(COUNT, (key.tenant, most)).fetchone()
        if count >= most:
            raise TooManyProfiles(most)
    created = now if there is None else there[1]
    connection.execute(PUT, (*key, version, created, now, record))
    return PutOutcome(version, "created" if there is None else "replaced", created, now)


def put_many(
    connection: sqlite3.Connection, records: Sequence[KeyedRecord], replace: bool, now: float
) -> list[PutOutcome]:
    """Inside a transaction."""
    asked = json.dumps([keyed.key for keyed in records])
    rows = connection.execute(GET_FOR_PUT_MANY, (asked,))
    there = {(tenant, name): StoredProfile(*stored) for tenant, name, *stored in rows}
    outcomes: list[PutOutcome] = []
    written: list[tuple[str, str, str, float, float, bytes]] = []
    for key, version, record in records:
        known = there.get(key)
        if known is None:
            outcome = PutOutcome(version, "created", now, now)
        elif known.version == version and known.record == record:
            outcome = PutOutcome(version, "identical", known.created, known.updated)
        elif not replace:
            outcome = PutOutcome(known.version, "kept", known.created, known.updated)
        else:
            outcome = PutOutcome(version, "replaced", known.created, now)
        outcomes.append(outcome)
        if outcome.status in ("created", "replaced"):
            there[key] = StoredProfile(version, record, outcome.created, now)
            written.append((*key, version, outcome.created, now, record))
    # In the order of the primary key, so that each of its pages is changed once.
    connection.executemany(PUT, sorted(written, key=itemgetter(0, 1)))
    return outcomes


def delete(connection: sqlite3.Connection, key: ProfileKey, match: Match) -> bool:
    """Inside a transaction. Raises: PreconditionFailed."""
    there = connection.execute(GET_VERSION, key).fetchone()
    match.check(there and there[0])
    return connection.execute(DELETE, key).rowcount > 0


def tenants(connection: sqlite3.Connection, after: str, limit: int) -> list[str]:
    return [tenant for (tenant,) in connection.execute(TENANTS, (after, limit))]


def page(connection: sqlite3.Connection, tenant: str, after: str, prefix: str, limit: int) -> ListPage:
    """The read is over before the records are looked into: as long as it lasts, the write-ahead log only grows."""
    asked = (tenant, after, prefix, prefix, limit + 1)
    try:
        with closing(connection.execute(PAGE, asked)) as rows:
            found = list(_of_a_page((name, StoredProfile(*stored)) for name, *stored in rows))
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        names = [name for (name,) in connection.execute(NAMES, asked)]
        found = list(_of_a_page(_one_by_one(connection, tenant, names)))
    return page_of(found, limit)


def _one_by_one(
    connection: sqlite3.Connection, tenant: str, names: Iterable[str]
) -> Iterator[tuple[str, StoredProfile]]:
    """Without those that were deleted since the names were read."""
    for name in names:
        (stored,) = get_many(connection, [ProfileKey(tenant, name)])
        if stored is not None:
            yield name, stored


def _of_a_page(rows: Iterable[tuple[str, StoredProfile]]) -> Iterator[tuple[str, StoredProfile]]:
    """Up to the one behind which `page_of` ends, so that large profiles cost no more memory than a page has room."""
    size = 0
    for row in rows:
        yield row
        if size >= PAGE_BYTES:
            return
        size += len(row[1].record)
