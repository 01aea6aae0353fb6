"""What only one kind of job store has to promise: Redis its keys, SQLite its older files."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from xpeft_profiles import JobRecord, ProfileKey, RedisStore, SqliteStore, StoreUnavailable, new_job_id

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
