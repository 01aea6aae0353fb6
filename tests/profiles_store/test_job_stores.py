"""What only one kind of job store has to promise: Redis its keys, SQLite its older files."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from xpeft_profiles import (
    JobKey,
    JobRecord,
    ProfileKey,
    RecordDamaged,
    RedisStore,
    SqliteStore,
    StoreUnavailable,
    new_job_id,
    open_store,
)
from xpeft_profiles.jobs.record import encode_job

RECORD = JobRecord(tenant="acme", id=new_job_id(1.0), profile="desk", owner="host 1", status="queued", created=1.0)


async def test_a_tenants_keys_share_a_cluster_slot(redis_client: redis.Redis, redis_server: Any) -> None:
    store = RedisStore(redis_server.url)
    await store.jobs.add(RECORD, lease=10, most=1, keep=1)
    keys = {f"xpeft:{{acme}}:job:{RECORD.id}".encode(), b"xpeft:{acme}:jobs", b"xpeft:{acme}:jobs:unfinished"}
    assert set(redis_client.keys()) == keys
    assert len({key_slot(key) for key in keys}) == 1
    await store.close()


async def test_every_call_to_a_redis_that_is_gone_is_unavailable(own_redis: Any) -> None:
    jobs = RedisStore(own_redis.url).jobs
    await asyncio.to_thread(own_redis.kill)
    for call in (
        lambda: jobs.add(RECORD, lease=10, most=1, keep=1),
        lambda: jobs.get(RECORD.key),
        lambda: jobs.replace(RECORD, lease=10),
        lambda: jobs.renew([RECORD.key], lease=10),
        lambda: jobs.list("acme", limit=1),
        lambda: jobs.unfinished(),
    ):
        with pytest.raises(StoreUnavailable, match=f"redis at 127.0.0.1:{own_redis.port} failed"):
            await call()


@pytest.fixture
def overwrite(shared_url: str) -> Callable[[JobKey, bytes], None]:
    """Puts other bytes in place of a job's record, behind the store's back."""

    def overwrite_sqlite(key: JobKey, data: bytes) -> None:
        with sqlite3.connect(shared_url.removeprefix("sqlite:///")) as connection:
            connection.execute("UPDATE jobs SET record = ? WHERE tenant = ? AND id = ?", (data, *key))
        connection.close()

    def overwrite_redis(key: JobKey, data: bytes) -> None:
        with redis.Redis.from_url(shared_url) as client:
            client.set(f"xpeft:{{{key.tenant}}}:job:{key.id}", data)

    return overwrite_sqlite if shared_url.startswith("sqlite") else overwrite_redis


async def test_a_record_that_cannot_be_read_is_left_out_and_logged_once(
    shared_url: str, overwrite: Callable[[JobKey, bytes], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(shared_url)
    await store.open()
    records = [replace(RECORD, id=new_job_id(float(number))) for number in range(5)]
    for record in records:
        await store.jobs.add(record, lease=1000, most=9, keep=9)
    overwrite(records[1].key, b"{garbage")
    overwrite(records[3].key, encode_job(records[3]).replace(b'"queued"', b'"paused"'))
    left = [records[number] for number in (0, 2, 4)]
    for _ in range(2):
        assert sorted((job.record for job in await store.jobs.unfinished()), key=lambda job: job.id) == left
        page = await store.jobs.list("acme", limit=9)
        assert [job.record for job in page.jobs] == left[::-1]
    pages = [await store.jobs.list("acme", limit=2)]
    while pages[-1].next_cursor is not None:
        pages.append(await store.jobs.list("acme", limit=2, cursor=pages[-1].next_cursor))
    assert [job.record for page in pages for job in page.jobs] == left[::-1]
    for number in (1, 3):
        with pytest.raises(RecordDamaged, match="cannot be read"):
            await store.jobs.get(records[number].key)
    said = sorted(record.message.split(" is left out")[0] for record in caplog.records)
    assert said == [f"tuning job {records[number].id!r} of tenant 'acme'" for number in (1, 3)]
    await store.close()


async def test_a_file_from_before_there_were_jobs_gets_their_table(
    tmp_path: Path, make_profile: Callable[..., Any]
) -> None:
    path = tmp_path / "profiles.db"
    store = SqliteStore(path)
    await store.open()
    await store.put(ProfileKey("acme", "desk"), make_profile())
    await store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE jobs")
    connection.close()
    await store.open()
    await store.jobs.add(RECORD, lease=10, most=1, keep=1)
    assert await store.jobs.get(RECORD.key) == (RECORD, False)
    assert await store.versions([ProfileKey("acme", "desk")]) == [make_profile().version]
    await store.close()


async def test_the_jobs_of_a_closed_file_are_unavailable(tmp_path: Path) -> None:
    jobs = SqliteStore(tmp_path / "profiles.db").jobs
    with pytest.raises(StoreUnavailable, match="not open"):
        await jobs.get(RECORD.key)
    with pytest.raises(StoreUnavailable, match="not open"):
        await jobs.add(RECORD, lease=10, most=1, keep=1)
