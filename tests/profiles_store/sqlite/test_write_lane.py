"""Writes to SQLite that wait together share a commit, and nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from xpeft_profiles import (
    JobRecord,
    KeyedRecord,
    Match,
    PreconditionFailed,
    ProfileKey,
    SqliteStore,
    StoreUnavailable,
    TooManyJobs,
    TooManyProfiles,
    encode_record,
    new_job_id,
)
from xpeft_profiles.sqlite import log as sqlite_log
from xpeft_profiles.sqlite import write_lane as sqlite_write_lane
from xpeft_profiles.sqlite.write_lane import WriteLane

MakeProfile = Callable[..., Any]
NEW = Match(if_none_match=("*",))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "profiles.db", busy_seconds=0.05)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def commits(store: SqliteStore) -> list[str]:
    """Statements that ended a transaction, as they come."""
    seen: list[str] = []
    writer = store._opened().writer.connection
    writer.set_trace_callback(lambda statement: seen.append(statement) if statement in ("COMMIT", "ROLLBACK") else None)
    return seen


@contextmanager
def writer_held(store: SqliteStore) -> Iterator[None]:
    """While the block runs the writing thread does nothing, so that calls gather."""
    begun, release = threading.Event(), threading.Event()

    def hold() -> bool:
        begun.set()
        return release.wait()

    held = store._opened().writer.thread.submit(hold)
    # Turns of earlier calls that found nothing to do may still come before it, and would take some of these.
    assert begun.wait(timeout=30)
    try:
        yield
    finally:
        release.set()
        assert held.result(timeout=30)


async def together(store: SqliteStore, calls: list[Awaitable[Any]]) -> list[Any]:
    """Results or errors of calls that waited together."""
    with writer_held(store):
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        while len(store._opened().writer._waiting) < len(calls):
            await asyncio.sleep(0)
    return await asyncio.gather(*tasks, return_exceptions=True)


def key(number: int) -> ProfileKey:
    return ProfileKey("acme", f"p{number}")


async def test_calls_that_wait_together_are_one_commit(
    store: SqliteStore, commits: list[str], make_profile: MakeProfile
) -> None:
    outcomes = await together(store, [store.put(key(n), make_profile(n)) for n in range(50)])
    assert [outcome.status for outcome in outcomes] == ["created"] * 50
    assert commits == ["COMMIT"]
    gone = await together(store, [store.delete(key(n)) for n in range(50)])
    assert gone == [True] * 50
    assert commits == ["COMMIT"] * 2


async def test_many_callers_need_few_commits(store: SqliteStore, commits: list[str], make_profile: MakeProfile) -> None:
    profiles = [make_profile(n) for n in range(200)]
    await asyncio.gather(*(store.put(key(n), profile) for n, profile in enumerate(profiles)))
    assert len(commits) < 100
    assert len((await store.list("acme", limit=1000)).profiles) == 200


async def test_a_transaction_takes_so_many_calls_and_the_rest_the_next(
    store: SqliteStore, commits: list[str], make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_write_lane, "MOST_TOGETHER", 4)
    await together(store, [store.put(key(n), make_profile(n)) for n in range(10)])
    assert commits == ["COMMIT"] * 3


async def test_puts_to_one_key_are_done_in_the_order_of_the_calls(
    store: SqliteStore, make_profile: MakeProfile
) -> None:
    outcomes = await together(store, [store.put(key(0), make_profile(n)) for n in range(20)])
    assert [outcome.status for outcome in outcomes] == ["created", *["replaced"] * 19]
    assert await store.versions([key(0)]) == [make_profile(19).version]
    mixed = [store.delete(key(0)), store.put(key(0), make_profile(1), match=NEW), store.delete(key(0))]
    assert [getattr(each, "status", each) for each in await together(store, mixed)] == [True, "created", True]


async def test_one_that_is_refused_touches_no_other(
    store: SqliteStore, commits: list[str], make_profile: MakeProfile
) -> None:
    outcomes = await together(
        store,
        [
            store.put(key(0), make_profile(0)),
            store.put(key(1), make_profile(1), match=Match(if_match=("*",))),
            store.put(key(2), make_profile(2), most=1),
            store.put(key(0), make_profile(3), match=NEW),
            store.delete(key(4), match=Match(if_match=("*",))),
            store.put(key(5), make_profile(5)),
        ],
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds[1:5] == [PreconditionFailed, TooManyProfiles, PreconditionFailed, PreconditionFailed]
    assert [outcomes[0].status, outcomes[5].status] == ["created", "created"]
    assert outcomes[3].current_version == make_profile(0).version
    assert await store.versions([key(n) for n in range(6)]) == [
        make_profile(0).version,
        *[None] * 4,
        make_profile(5).version,
    ]
    assert commits == ["COMMIT"]


async def test_a_call_that_fails_half_way_is_taken_back_alone(store: SqliteStore, make_profile: MakeProfile) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM profiles")
        raise RuntimeError("half way")

    def wrong(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM profiles")
        connection.execute("DELETE FROM nowhere")

    outcomes = await together(
        store,
        [
            store.put(key(0), make_profile(0)),
            store._write(half),
            store._write(wrong),
            store.put(key(1), make_profile(1)),
        ],
    )
    assert isinstance(outcomes[1], RuntimeError)
    assert isinstance(outcomes[2], StoreUnavailable)
    assert [outcomes[0].status, outcomes[3].status] == ["created", "created"]
    assert None not in await store.versions([key(0), key(1)])


async def test_a_commit_that_fails_is_the_failure_of_all_and_writes_nothing(
    store: SqliteStore, make_profile: MakeProfile
) -> None:
    # Checked at the commit, not before.
    await store._write(lambda connection: connection.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
    await store._write(
        lambda connection: connection.execute(
            "CREATE TABLE children (id REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)"
        )
    )
    store._opened().writer.connection.execute("PRAGMA foreign_keys = ON")
    outcomes = await together(
        store,
        [
            store.put(key(0), make_profile(0)),
            store._write(lambda connection: connection.execute("INSERT INTO children VALUES (1)")),
            store.put(key(1), make_profile(1), match=Match(if_match=("*",))),
            store.delete(key(2)),
        ],
    )
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 4
    assert "FOREIGN KEY" in outcomes[0].message
    assert await store.versions([key(0)]) == [None]
    assert (await store.put(key(0), make_profile(0))).status == "created"


async def test_a_foreign_lock_refuses_all_that_wait_in_one_time(
    store: SqliteStore, tmp_path: Path, make_profile: MakeProfile
) -> None:
    other = sqlite3.connect(tmp_path / "profiles.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    outcomes = await together(store, [store.put(key(n), make_profile(n)) for n in range(10)])
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    other.execute("ROLLBACK")
    other.close()
    assert (await store.put(key(0), make_profile(0))).status == "created"


async def test_nobody_is_answered_before_the_commit() -> None:
    answered: list[bool] = []
    tasks: list[asyncio.Task[None]] = []

    class Watched(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            if statement == "COMMIT":
                answered.extend(task.done() for task in tasks)
            return super().execute(statement, *parameters)

    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=Watched)
    with ThreadPoolExecutor(1) as thread:
        lane = WriteLane(connection, thread, committed=lambda: None)
        release = threading.Event()
        thread.submit(release.wait)
        tasks += [asyncio.ensure_future(lane.write(lambda _: None)) for _ in range(5)]
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks)
    connection.close()
    assert answered == [False] * 5


async def test_a_caller_that_has_gone_before_its_turn_writes_nothing(
    store: SqliteStore, make_profile: MakeProfile
) -> None:
    with writer_held(store):
        tasks = [asyncio.ensure_future(store.put(key(n), make_profile(n))) for n in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert [version is None for version in await store.versions([key(n) for n in range(4)])] == [
        False,
        True,
        False,
        False,
    ]


async def test_jobs_and_profiles_go_together(store: SqliteStore, commits: list[str], make_profile: MakeProfile) -> None:
    jobs = [
        JobRecord(tenant="acme", id=new_job_id(n), profile="desk", owner="host 1", status="queued", created=n)
        for n in (1.0, 2.0, 3.0)
    ]
    many = [KeyedRecord(key(n), make_profile(n).version, encode_record(make_profile(n))) for n in range(10, 15)]
    outcomes = await together(
        store,
        [
            store.jobs.add(jobs[0], lease=100, most=2, keep=10),
            store.put(key(0), make_profile(0)),
            store.jobs.add(jobs[1], lease=100, most=2, keep=10),
            store.jobs.add(jobs[2], lease=100, most=2, keep=10),
            store.put_many(many),
            store.jobs.renew([jobs[0].key, jobs[2].key], lease=50),
        ],
    )
    assert isinstance(outcomes[3], TooManyJobs)
    assert outcomes[5] == [True, False]
    assert [outcome.status for outcome in outcomes[4]] == ["created"] * 5
    assert commits == ["COMMIT"]
    assert await store.jobs.get(jobs[1].key) == (jobs[1], False)
    assert await store.jobs.get(jobs[2].key) is None


@contextmanager
def readers_overlapping(path: Path) -> Iterator[None]:
    """While the block runs two read by turns, and each ends only once the other has begun."""
    over = threading.Event()
    begun = [threading.Semaphore(0), threading.Semaphore(0)]

    def read(own: int) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        while not over.is_set():
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM profiles").fetchone()
            begun[own].release()
            begun[1 - own].acquire()
            connection.execute("COMMIT")
        begun[own].release()
        connection.close()

    with ThreadPoolExecutor(2) as threads:
        reading = [threads.submit(read, own) for own in range(2)]
        try:
            yield
        finally:
            over.set()
    for each in reading:
        each.result()


async def test_the_log_does_not_grow_for_ever_while_somebody_always_reads(
    tmp_path: Path, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "LOG_BYTES", 1 << 20)
    store = SqliteStore(tmp_path / "profiles.db")
    await store.open()
    log = tmp_path / "profiles.db-wal"
    profiles = [make_profile(n, hidden=4096, labels=tuple(f"c{label}" for label in range(16))) for n in range(2)]
    sizes = []
    with readers_overlapping(tmp_path / "profiles.db"):
        for n in range(80):
            await store.put(key(0), profiles[n % 2])
            sizes.append(log.stat().st_size)
    # All of them together are more than 10 MiB.
    assert max(sizes) < 3 << 20
    assert await store.versions([key(0)]) == [profiles[1].version]
    await store.close()


async def test_a_log_that_cannot_be_cut_holds_up_few_writes_and_is_cut_later(
    tmp_path: Path, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "LOG_BYTES", 1 << 20)
    store = SqliteStore(tmp_path / "profiles.db")
    await store.open()
    log = tmp_path / "profiles.db-wal"
    waited: list[str] = []
    store._opened().writer.connection.set_trace_callback(
        lambda statement: waited.append(statement) if "wal_checkpoint" in statement else None
    )
    profiles = [make_profile(n, hidden=4096, labels=tuple(f"c{label}" for label in range(16))) for n in range(2)]
    reader = sqlite3.connect(tmp_path / "profiles.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM profiles").fetchone()
    for n in range(30):
        await store.put(key(0), profiles[n % 2])
    assert 1 <= len(waited) <= log.stat().st_size >> 20
    reader.close()
    for n in range(20):
        await store.put(key(0), profiles[n % 2])
    assert log.stat().st_size < 2 << 20
    assert store._opened().writer.connection.execute("PRAGMA busy_timeout").fetchone() == (5000,)
    await store.close()


async def test_closing_waits_for_what_was_begun(tmp_path: Path, make_profile: MakeProfile) -> None:
    store = SqliteStore(tmp_path / "profiles.db")
    await store.open()
    tasks = [asyncio.ensure_future(store.put(key(n), make_profile(n))) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert [outcome.status for outcome in await asyncio.gather(*tasks)] == ["created"] * 20
    await store.open()
    assert None not in await store.versions([key(n) for n in range(20)])
    await store.close()
