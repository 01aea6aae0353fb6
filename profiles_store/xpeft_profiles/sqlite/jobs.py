"""The table of tuning jobs in the SQLite file. Everything here blocks; the store calls it in its threads."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ..errors import TooManyJobs
from ..jobs.reader import FoundJob, JobReader
from ..jobs.record import JobKey, JobRecord, decode_job, encode_job
from ..jobs.store import KEPT_SECONDS, JobPage, StoredJob
from ..listing import encode_cursor

# ``lease``: until when the owner answers for the job, NULL once it is finished. A server that knows nothing of jobs
# leaves the table alone, so it needs no new schema version.
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    tenant   TEXT NOT NULL,
    id       TEXT NOT NULL,
    lease    REAL,
    finished REAL,
    record   BLOB NOT NULL,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID
"""
COUNT_ALIVE = "SELECT count(*) FROM jobs WHERE tenant = ? AND lease > ?"
ADD = "INSERT INTO jobs (tenant, id, lease, record) VALUES (?, ?, ?, ?)"
DROP = """
DELETE FROM jobs WHERE tenant = :tenant AND finished IS NOT NULL AND (
    finished < :oldest
    OR id <= (SELECT id FROM jobs WHERE tenant = :tenant ORDER BY id DESC LIMIT 1 OFFSET :keep)
)
"""
GET = "SELECT record, lease FROM jobs WHERE tenant = ? AND id = ? AND (finished IS NULL OR finished >= ?)"
REPLACE = "UPDATE jobs SET lease = ?, finished = ?, record = ? WHERE tenant = ? AND id = ? AND lease IS NOT NULL"
RENEW = "UPDATE jobs SET lease = ? WHERE tenant = ? AND id = ? AND lease IS NOT NULL"
PAGE = """
SELECT id, record, lease FROM jobs
WHERE tenant = :tenant AND (:before = '' OR id < :before) AND (finished IS NULL OR finished >= :oldest)
ORDER BY id DESC LIMIT :limit
"""
UNFINISHED = "SELECT tenant, id, record, lease FROM jobs WHERE lease IS NOT NULL"


def add(connection: sqlite3.Connection, record: JobRecord, lease: float, most: int, keep: int, now: float) -> None:
    """Inside a transaction. Raises: TooManyJobs."""
    (alive,) = connection.execute(COUNT_ALIVE, (record.tenant, now)).fetchone()
    if alive >= most:
        raise TooManyJobs(most)
    connection.execute(ADD, (*record.key, now + lease, encode_job(record)))
    connection.execute(DROP, {"tenant": record.tenant, "oldest": now - KEPT_SECONDS, "keep": keep})


def get(connection: sqlite3.Connection, key: JobKey, now: float) -> StoredJob | None:
    """Raises: RecordDamaged."""
    row = connection.execute(GET, (*key, now - KEPT_SECONDS)).fetchone()
    return None if row is None else StoredJob(decode_job(row[0]), _has_lapsed(row[1], now))


def replace(connection: sqlite3.Connection, record: JobRecord, lease: float, now: float) -> bool:
    until = now + lease if record.finished is None else None
    return connection.execute(REPLACE, (until, record.finished, encode_job(record), *record.key)).rowcount > 0


def renew(connection: sqlite3.Connection, keys: Sequence[JobKey], until: float) -> list[bool]:
    """Inside a transaction."""
    return [connection.execute(RENEW, (until, *key)).rowcount > 0 for key in keys]


def page(
    connection: sqlite3.Connection, reader: JobReader, tenant: str, before: str, limit: int, now: float
) -> JobPage:
    """``before``: the id after which the page begins, "" for the first page."""
    asked = {"tenant": tenant, "before": before, "oldest": now - KEPT_SECONDS, "limit": limit + 1}
    rows = connection.execute(PAGE, asked).fetchall()
    found = (FoundJob(JobKey(tenant, id_), record, _has_lapsed(lease, now)) for id_, record, lease in rows[:limit])
    return JobPage(tuple(reader.readable(found)), encode_cursor(rows[limit - 1][0]) if len(rows) > limit else None)


def unfinished(connection: sqlite3.Connection, reader: JobReader, now: float) -> list[StoredJob]:
    rows = connection.execute(UNFINISHED)
    return reader.readable(
        FoundJob(JobKey(tenant, id_), record, _has_lapsed(lease, now)) for tenant, id_, record, lease in rows
    )


def _has_lapsed(lease: float | None, now: float) -> bool:
    return lease is not None and lease <= now
