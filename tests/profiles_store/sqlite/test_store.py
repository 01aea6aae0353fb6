"""What only the SQLite store has to promise: a file, its durability and its faults."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xpeft_profiles import Match, PreconditionFailed, ProfileKey, RecordDamaged, SqliteStore, StoreUnavailable
from xpeft_profiles.listing import encode_cursor
from xpeft_profiles.sqlite import database as sqlite_database
from xpeft_profiles.sqlite import jobs as sqlite_jobs

KEY = ProfileKey("acme", "support")
LABELS = tuple(f"label {i}" for i in range(40))
MakeProfile = Callable[..., Any]

WRITER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from xpeft_profiles import Profile, ProfileKey, SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    rows = np.eye(64, dtype=bool)
    for i in range(64 * 64):
        profile = Profile(bank="sha256:" + "00" * 32, mask_a=rows[i % 64][None], mask_b=rows[i // 64][None])
        outcome = await store.put(ProfileKey("acme", f"p{i}"), profile)
        print(f"p{i}", outcome.version, flush=True)

asyncio.run(main())
"""

OTHER_PROGRAM = """
import contextlib, sqlite3, sys

path, *statements = sys.argv[1:]
connection = sqlite3.connect(path)
for statement in statements:
    if statement.startswith("."):
        with contextlib.closing(sqlite3.connect(f"{path}.copy")) as copy:
            pair = (connection, copy) if statement == ".backup" else (copy, connection)
            pair[0].backup(pair[1])
    else:
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute(statement).fetchall()
    connection.commit()
connection.close()
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "profiles.db", busy_seconds=0.05)
    await opened.open()
    yield opened
    await opened.close()


def sizes(folder: Path) -> dict[str, int]:
    """Of the files in it, in bytes."""
    return {each.name: each.stat().st_size for each in folder.iterdir()}


def acknowledged_by_a_killed_writer(path: Path) -> list[list[str]]:
    """Names and versions that a process said it had stored, before and while it was killed."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(200)]
        writer.kill()
        lines += writer.stdout.readlines()
    return [line.split() for line in lines if line.endswith("\n")]


def damage_page_with(record: bytes, path: Path) -> None:
    """Of a file that nobody has open."""
    content = bytearray(path.read_bytes())
    while record in content:  # SQLite leaves copies of what it moved.
        begin = content.index(record) // 4096 * 4096
        content[begin : begin + 4096] = b"\xff" * 4096
    path.write_bytes(content)


async def test_what_was_acknowledged_survives_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "profiles.db"
    acknowledged = await asyncio.to_thread(acknowledged_by_a_killed_writer, path)
    assert 200 <= len(acknowledged) < 64 * 64
    store = SqliteStore(path)
    await store.open()
    stored = await store.get_many([ProfileKey("acme", name) for name, _ in acknowledged])
    await store.close()
    assert [profile and profile.decode().version for profile in stored] == [version for _, version in acknowledged]


async def test_commits_are_synced_to_the_disk(store: SqliteStore) -> None:
    writer = store._opened().writer.connection
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_readers_cannot_write(store: SqliteStore) -> None:
    for read in (store._read, store._walk):
        with pytest.raises(StoreUnavailable, match="readonly"):
            await read(lambda connection: connection.execute("DELETE FROM profiles"))


@pytest.mark.parametrize("walk", ["profiles", "tenants", "jobs"])
async def test_nothing_else_waits_behind_a_list(
    store: SqliteStore, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch, walk: str
) -> None:
    began, goes_on = threading.Event(), threading.Event()

    def held(answer: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*arguments: Any) -> Any:
            began.set()
            assert goes_on.wait(30)
            return answer(*arguments)

        return wait

    async def tenants() -> list[str]:
        return [tenant async for tenant in store.tenants()]

    await store.put(KEY, make_profile(1))
    for module, name in ((sqlite_database, "page"), (sqlite_database, "tenants"), (sqlite_jobs, "page")):
        monkeypatch.setattr(module, name, held(getattr(module, name)))
    lists: dict[str, Callable[[], Any]] = {
        "profiles": lambda: store.list("acme", limit=10),
        "tenants": tenants,
        "jobs": lambda: store.jobs.list("acme", limit=10),
    }
    waiting = asyncio.ensure_future(lists[walk]())
    try:
        assert await asyncio.to_thread(began.wait, 10)
        async with asyncio.timeout(10):
            assert await store.versions([KEY]) == [make_profile(1).version]
            assert await store.get(KEY) is not None
            assert (await store.put(KEY, make_profile(2))).status == "replaced"
            assert await store.jobs.unfinished() == []
            await store.ping()
        assert not waiting.done()
    finally:
        goes_on.set()
        found = await waiting
    if walk == "profiles":
        assert [line.version for line in found.profiles] == [make_profile(2).version]


async def test_known_versions_are_answered_without_a_thread(store: SqliteStore, make_profile: MakeProfile) -> None:
    await store.put(KEY, make_profile())
    await store.versions([KEY])
    coroutine = store.versions([KEY])
    with pytest.raises(StopIteration) as answered:
        coroutine.send(None)
    assert answered.value.value == [make_profile().version]


async def test_a_closed_store_is_unavailable_and_opens_again(store: SqliteStore, make_profile: MakeProfile) -> None:
    await store.put(KEY, make_profile())
    await store.close()
    calls = (store.get(KEY), store.versions([KEY]), store.put(KEY, make_profile()), store.ping())
    for call in (*calls, store.list("acme", limit=1), store.jobs.list("acme", limit=1)):
        with pytest.raises(StoreUnavailable, match="not open"):
            await call
    await store.open()
    assert await store.versions([KEY]) == [make_profile().version]


async def test_a_folder_that_is_missing_makes_it_unavailable_until_it_is_there(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "later" / "profiles.db")
    with pytest.raises(StoreUnavailable, match=r"profiles\.db failed: unable to open database file"):
        await store.open()
    (tmp_path / "later").mkdir()
    await store.open()
    await store.ping()
    await store.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profiles.db"
    path.write_bytes(b"no database at all " * 300)
    store = SqliteStore(path)
    with pytest.raises(StoreUnavailable, match="not a database"):
        await store.open()
    await store.close()
    assert path.read_bytes().startswith(b"no database")


async def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (id INTEGER)")
    connection.close()
    with pytest.raises(StoreUnavailable, match="another program"):
        await SqliteStore(path).open()


async def test_a_newer_schema_is_refused(store: SqliteStore, tmp_path: Path) -> None:
    await store._write(lambda connection: connection.execute("PRAGMA user_version = 2"))
    with pytest.raises(StoreUnavailable, match="has schema 2, this server knows schema 1"):
        await SqliteStore(tmp_path / "profiles.db").open()


async def test_who_only_reads_changes_no_file_and_leaves_none(
    store: SqliteStore, tmp_path: Path, make_profile: MakeProfile
) -> None:
    path = tmp_path / "profiles.db"
    await store.put(KEY, make_profile(1))
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE jobs")
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    content = path.read_bytes()
    reader = SqliteStore(path, read_only=True)
    await reader.open()
    assert await reader.versions([KEY]) == [make_profile(1).version]
    assert [line.name for line in (await reader.list("acme", limit=9)).profiles] == ["support"]
    assert [tenant async for tenant in reader.tenants()] == ["acme"]
    with pytest.raises(StoreUnavailable, match="readonly"):
        await reader.put(KEY, make_profile(2))
    await reader.close()
    assert path.read_bytes() == content
    assert sizes(tmp_path).keys() == {"profiles.db"}


async def test_who_only_reads_sees_what_others_write_and_waits_for_no_lock(
    store: SqliteStore, tmp_path: Path, make_profile: MakeProfile
) -> None:
    other = sqlite3.connect(tmp_path / "profiles.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    reader = SqliteStore(tmp_path / "profiles.db", busy_seconds=0.05, read_only=True)
    await reader.open()
    other.execute("ROLLBACK")
    other.close()
    assert await reader.versions([KEY]) == [None]
    await store.put(KEY, make_profile(1))
    assert await reader.versions([KEY]) == [make_profile(1).version]
    await reader.close()


@pytest.mark.parametrize("log", [False, True])
async def test_a_file_on_a_read_only_file_system_is_read_unless_a_log_lies_beside_it(
    store: SqliteStore, tmp_path: Path, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch, log: bool
) -> None:
    path = tmp_path / "profiles.db"
    await store.put(KEY, make_profile(1))
    await store.close()
    if log:
        (tmp_path / "profiles.db-wal").touch()
    # What can be told without a mount of one's own: which way the file is opened.
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    opened: list[str] = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name, **options: opened.append(name) or connect(name, **options))
    reader = SqliteStore(path, read_only=True)
    await reader.open()
    assert await reader.versions([KEY]) == [make_profile(1).version]
    await reader.close()
    assert {name.endswith("?immutable=1") for name in opened} == {not log}


async def test_who_only_reads_makes_no_store_and_takes_no_other_programs(tmp_path: Path) -> None:
    for name, error in (("gone.db", "unable to open"), ("empty.db", "is empty"), ("other.db", "another program")):
        path = tmp_path / name
        if name != "gone.db":
            path.touch()
        if name == "other.db":
            with sqlite3.connect(path) as connection:
                connection.execute("CREATE TABLE accounts (id INTEGER)")
            connection.close()
        with pytest.raises(StoreUnavailable, match=error):
            await SqliteStore(path, read_only=True).open()
    found = sizes(tmp_path)
    assert (found["empty.db"], found.keys()) == (0, {"empty.db", "other.db"})


async def test_a_full_disk_refuses_the_write_and_keeps_what_was_there(
    store: SqliteStore, make_profile: MakeProfile
) -> None:
    await store.put(KEY, make_profile(1))
    await store._write(lambda connection: connection.execute("PRAGMA max_page_count = 8").fetchone())
    large = make_profile(2, hidden=4096, labels=tuple("abcdefgh"))
    with pytest.raises(StoreUnavailable, match="full"):
        await store.put(KEY, large)
    assert await store.versions([KEY]) == [make_profile(1).version]
    assert (await store.put(KEY, make_profile(3))).status == "replaced"


async def test_a_foreign_lock_refuses_writes_in_time_and_lets_reads_through(
    store: SqliteStore, tmp_path: Path, make_profile: MakeProfile
) -> None:
    await store.put(KEY, make_profile(1))
    other = sqlite3.connect(tmp_path / "profiles.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.put(KEY, make_profile(2))
    assert await store.versions([KEY]) == [make_profile(1).version]
    other.execute("ROLLBACK")
    other.close()
    assert (await store.put(KEY, make_profile(2))).status == "replaced"


async def test_who_renews_no_job_learns_all_the_same_that_nobody_can_write(store: SqliteStore, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "profiles.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.jobs.renew([], lease=10.0)
    other.execute("ROLLBACK")
    other.close()
    assert await store.jobs.renew([], lease=10.0) == []


async def test_a_refused_precondition_leaves_no_transaction_open(store: SqliteStore, make_profile: MakeProfile) -> None:
    with pytest.raises(PreconditionFailed):
        await store.put(KEY, make_profile(1), match=Match(if_match=("*",)))
    assert not store._opened().writer.connection.in_transaction
    assert (await store.put(KEY, make_profile(1))).status == "created"


async def test_a_damaged_file_is_unavailable(store: SqliteStore, tmp_path: Path, make_profile: MakeProfile) -> None:
    await store.put(KEY, make_profile(1))
    await store.close()
    path = tmp_path / "profiles.db"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    await store.open()
    with pytest.raises(StoreUnavailable, match="malformed"):
        await store.get(KEY)
    with pytest.raises(StoreUnavailable, match="malformed"):
        await store.ping()
    with pytest.raises(StoreUnavailable, match="malformed"):
        await store.put(KEY, make_profile(2))


async def test_what_lies_on_a_damaged_page_is_damaged_and_all_else_is_read(
    store: SqliteStore, tmp_path: Path, make_profile: MakeProfile, caplog: pytest.LogCaptureFixture
) -> None:
    profiles = {ProfileKey("acme", f"p{i:03}"): make_profile(i, labels=LABELS) for i in range(40)}
    for key, profile in profiles.items():
        await store.put(key, profile)
    records = {key: stored.record for key, stored in zip(profiles, await store.get_many([*profiles]), strict=True)}
    await store.close()
    damage_page_with(records[ProfileKey("acme", "p020")], tmp_path / "profiles.db")
    await store.open()
    found = dict(zip(profiles, await store.get_many([*profiles]), strict=True))
    lost = [key for key in profiles if found[key].record != records[key]]
    assert ProfileKey("acme", "p020") in lost
    assert len(lost) < len(profiles)
    for key in lost:
        with pytest.raises(RecordDamaged):
            (await store.get(key)).decode()
    versions = dict(zip(profiles, await store.versions([*profiles]), strict=True))
    assert {key for key, version in versions.items() if version != profiles[key].version} == {*lost}
    await store.ping()
    lines = [*(await store.list("acme", limit=30)).profiles]
    lines += (await store.list("acme", limit=30, cursor=encode_cursor(lines[-1].name))).profiles
    assert [(line.name, line.version) for line in lines] == [(key.name, versions[key]) for key in profiles]
    with pytest.raises(StoreUnavailable, match="malformed"):
        await store.put(lost[0], make_profile(100))
    (told,) = caplog.messages
    assert f"{tmp_path / 'profiles.db'} has a damaged page" in told


async def test_the_event_loop_runs_while_the_store_works(store: SqliteStore, make_profile: MakeProfile) -> None:
    waiting = asyncio.ensure_future(store.put(KEY, make_profile(1)))
    turns = 0
    while not waiting.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 1
    assert (await waiting).status == "created"


async def test_a_file_that_lost_its_name_takes_no_write_until_it_has_it_again(
    store: SqliteStore, tmp_path: Path, make_profile: MakeProfile
) -> None:
    path, away = tmp_path / "profiles.db", tmp_path / "away.db"
    await store.put(KEY, make_profile(1))
    path.rename(away)
    for call in (store.put(KEY, make_profile(2)), store.ping(), store.versions([KEY]), store.get(KEY)):
        with pytest.raises(StoreUnavailable, match=r"profiles\.db"):
            await call
    path.write_bytes(away.read_bytes())
    with pytest.raises(StoreUnavailable, match="another file now"):
        await store.put(KEY, make_profile(2))
    away.rename(path)
    assert await store.versions([KEY]) == [make_profile(1).version]
    assert (await store.put(KEY, make_profile(2))).status == "replaced"


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_a_log_or_index_that_is_gone_refuses_everything_until_a_restart(
    store: SqliteStore, tmp_path: Path, make_profile: MakeProfile, suffix: str
) -> None:
    gone = tmp_path / f"profiles.db{suffix}"
    await store.put(KEY, make_profile(1))
    gone.unlink()
    for call in (store.put(KEY, make_profile(2)), store.ping(), store.versions([KEY]), store.get(KEY)):
        with pytest.raises(StoreUnavailable, match=rf"No such file .*{gone.name}"):
            await call
    gone.touch()
    with pytest.raises(StoreUnavailable, match=rf"{gone.name} is another file now"):
        await store.put(KEY, make_profile(2))
    await store.close()
    await store.open()
    assert await store.versions([KEY]) == [make_profile(1).version]
    assert (await store.put(KEY, make_profile(2))).status == "replaced"


async def test_a_log_that_was_away_may_come_back(store: SqliteStore, tmp_path: Path, make_profile: MakeProfile) -> None:
    path, away = tmp_path / "profiles.db-wal", tmp_path / "away"
    await store.put(KEY, make_profile(1))
    path.rename(away)
    with pytest.raises(StoreUnavailable, match=r"profiles\.db-wal"):
        await store.put(KEY, make_profile(2))
    away.rename(path)
    assert (await store.put(KEY, make_profile(2))).status == "replaced"


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_a_file_that_goes_while_something_is_written_to_it_fails_the_write(
    store: SqliteStore, tmp_path: Path, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    put = sqlite_database.put

    def put_and_lose(*arguments: Any) -> Any:
        (tmp_path / f"profiles.db{suffix}").unlink()
        return put(*arguments)

    monkeypatch.setattr(sqlite_database, "put", put_and_lose)
    with pytest.raises(StoreUnavailable, match=f"profiles.db{suffix}"):
        await store.put(KEY, make_profile(1))


async def test_what_other_programs_do_with_an_open_file_stops_no_write(
    tmp_path: Path, make_profile: MakeProfile
) -> None:
    """By another name of the file, too."""
    path, link = tmp_path / "profiles.db", tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    store, other = SqliteStore(link), SqliteStore(path)
    await store.open()
    programs = (
        ["SELECT count(*) FROM profiles"],
        ["PRAGMA wal_checkpoint(TRUNCATE)"],
        ["PRAGMA wal_checkpoint(RESTART)", "DELETE FROM profiles"],
        ["VACUUM"],
        ["PRAGMA journal_mode = DELETE"],
        [".backup"],
        [".restore"],
    )
    for seed, statements in enumerate(programs):
        await store.put(KEY, make_profile(seed))
        command = [sys.executable, "-c", OTHER_PROGRAM, str(path), *statements]
        await asyncio.to_thread(subprocess.run, command, check=True)
        await other.open()
        version = make_profile(100 + seed).version
        assert (await store.put(KEY, make_profile(100 + seed))).version == version
        assert await other.versions([KEY]) == await store.versions([KEY]) == [version]
        await other.close()
    await store.close()
    await store.open()
    assert await store.versions([KEY]) == [version]
    await store.close()
