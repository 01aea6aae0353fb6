"""What every store of tuning jobs promises, asked of each of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xpeft_profiles import (
    CursorInvalid,
    JobKey,
    JobRecord,
    JobStore,
    ProfileInvalid,
    ProfileKey,
    ProfileStore,
    TooManyJobs,
    new_job_id,
)
from xpeft_profiles.jobs.store import KEPT_SECONDS

LONG = 1000.0
OVER = 0.0


def queued(number: int = 0, *, tenant: str = "acme", **fields: Any) -> JobRecord:
    """Another number, a younger job."""
    created = 1_767_225_600.0 + number
    words = {"tenant": tenant, "id": new_job_id(created), "profile": "desk", "owner": "host 1", "status": "queued"}
    return JobRecord(**{**words, "created": created, **fields})


def ended(record: JobRecord, *, at: float | None = None) -> JobRecord:
    return replace(record, status="succeeded", finished=time.time() if at is None else at, result={"rows": 3})


async def add(jobs: JobStore, record: JobRecord, *, lease: float = LONG, most: int = 100, keep: int = 100) -> JobRecord:
    await jobs.add(record, lease=lease, most=most, keep=keep)
    return record


async def ids_of(jobs: JobStore, tenant: str, *, limit: int = 100) -> list[str]:
    ids: list[str] = []
    cursor = None
    while True:
        page = await jobs.list(tenant, limit=limit, cursor=cursor)
        assert len(page.jobs) <= limit
        ids += [stored.record.id for stored in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            return ids


@pytest.fixture
def jobs(store: ProfileStore) -> JobStore:
    return store.jobs


@pytest.fixture
def two(two_stores: tuple[ProfileStore, ProfileStore]) -> tuple[JobStore, JobStore]:
    return two_stores[0].jobs, two_stores[1].jobs


async def test_an_absent_job_is_none_and_cannot_be_replaced(jobs: JobStore) -> None:
    record = queued()
    assert await jobs.get(record.key) is None
    assert await jobs.replace(record, lease=LONG) is False
    assert await jobs.renew([record.key], lease=LONG) == [False]
    assert await jobs.get(record.key) is None
    assert (await jobs.list("acme", limit=10)).jobs == ()
    assert await jobs.unfinished() == []


async def test_an_added_job_comes_back_as_it_was(jobs: JobStore) -> None:
    record = await add(jobs, queued(progress={"epoch": 1, "loss": 0.25}))
    assert await jobs.get(record.key) == (record, False)
    assert await ids_of(jobs, "acme") == [record.id]
    assert await jobs.unfinished() == [(record, False)]


async def test_a_replaced_job_has_its_new_state(jobs: JobStore) -> None:
    record = await add(jobs, queued())
    running = replace(record, status="running", started=1_767_225_601.5)
    assert await jobs.replace(running, lease=LONG) is True
    assert await jobs.get(record.key) == (running, False)


async def test_a_finished_job_never_changes(jobs: JobStore) -> None:
    record = await add(jobs, queued())
    done = ended(record)
    assert await jobs.replace(done, lease=LONG) is True
    for late in (record, replace(done, status="cancelled", result=None)):
        assert await jobs.replace(late, lease=LONG) is False
    assert await jobs.renew([record.key], lease=OVER) == [False]
    assert await jobs.get(record.key) == (done, False)
    assert await jobs.unfinished() == []


async def test_a_lease_that_is_not_renewed_lapses(jobs: JobStore) -> None:
    record = await add(jobs, queued(), lease=OVER)
    assert await jobs.get(record.key) == (record, True)
    assert (await jobs.list("acme", limit=10)).jobs == ((record, True),)
    assert await jobs.unfinished() == [(record, True)]


async def test_a_renewed_lease_holds_and_a_replaced_record_brings_its_own(jobs: JobStore) -> None:
    record = await add(jobs, queued(), lease=OVER)
    assert await jobs.renew([record.key], lease=LONG) == [True]
    assert await jobs.get(record.key) == (record, False)
    assert await jobs.replace(record, lease=OVER) is True
    assert await jobs.get(record.key) == (record, True)


async def test_leases_of_many_tenants_are_renewed_in_the_order_of_the_question(jobs: JobStore) -> None:
    records = [await add(jobs, queued(n, tenant=tenant), lease=OVER) for n in range(3) for tenant in ("acme", "zeta")]
    await jobs.replace(ended(records[2]), lease=LONG)
    keys = [records[3].key, JobKey("acme", "job_0"), records[2].key, records[0].key]
    assert await jobs.renew(keys, lease=LONG) == [True, False, False, True]
    lapsed = {stored.record.id for stored in await jobs.unfinished() if stored.lapsed}
    assert lapsed == {records[1].id, records[4].id, records[5].id}
    assert await jobs.renew([], lease=LONG) == []


async def test_a_lapsed_job_can_be_ended(jobs: JobStore) -> None:
    record = await add(jobs, queued(), lease=OVER)
    done = ended(record)
    assert await jobs.replace(done, lease=OVER) is True
    assert await jobs.get(record.key) == (done, False)


async def test_a_tenant_has_no_more_unfinished_jobs_than_it_may(jobs: JobStore) -> None:
    first, _ = [await add(jobs, queued(n), most=2) for n in range(2)]
    with pytest.raises(TooManyJobs, match="2 tuning jobs are queued or running"):
        await add(jobs, queued(2), most=2)
    assert len(await ids_of(jobs, "acme")) == 2
    await add(jobs, queued(3, tenant="zeta"), most=2)
    await jobs.replace(ended(first), lease=LONG)
    await add(jobs, queued(4), most=2)
    with pytest.raises(TooManyJobs):
        await add(jobs, queued(5), most=2)


async def test_a_lapsed_job_takes_nobodys_place(jobs: JobStore) -> None:
    await add(jobs, queued(0), lease=OVER, most=1)
    await add(jobs, queued(1), most=1)


async def test_of_many_adds_at_once_only_as_many_as_may_be_are_taken(jobs: JobStore) -> None:
    results = await asyncio.gather(*(add(jobs, queued(n), most=4) for n in range(16)), return_exceptions=True)
    assert sum(isinstance(result, TooManyJobs) for result in results) == 12
    assert len(await jobs.unfinished()) == 4


async def test_another_tenants_job_does_not_exist(jobs: JobStore) -> None:
    record = await add(jobs, queued())
    assert await jobs.get(JobKey("zeta", record.id)) is None
    assert await jobs.replace(replace(ended(record), tenant="zeta"), lease=LONG) is False
    assert await jobs.renew([JobKey("zeta", record.id)], lease=OVER) == [False]
    assert await ids_of(jobs, "zeta") == []
    assert await jobs.get(record.key) == (record, False)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
async def test_a_list_is_newest_first_page_by_page(jobs: JobStore, limit: int) -> None:
    records = [await add(jobs, queued(n)) for n in range(7)]
    await add(jobs, queued(3, tenant="zeta"))
    await jobs.replace(ended(records[4]), lease=LONG)
    assert await ids_of(jobs, "acme", limit=limit) == [record.id for record in reversed(records)]


async def test_a_job_that_comes_while_pages_are_read_moves_none(jobs: JobStore) -> None:
    records = [await add(jobs, queued(n)) for n in range(4)]
    page = await jobs.list("acme", limit=2)
    await add(jobs, queued(9))
    rest = await jobs.list("acme", limit=2, cursor=page.next_cursor)
    assert [stored.record for stored in (*page.jobs, *rest.jobs)] == records[::-1]
    assert rest.next_cursor is None


@pytest.mark.parametrize("cursor", ["", "?", "ä", "eA==", "a" * 1000])
async def test_a_cursor_of_no_page_is_refused(jobs: JobStore, cursor: str) -> None:
    with pytest.raises(CursorInvalid):
        await jobs.list("acme", limit=10, cursor=cursor)


async def test_a_finished_job_is_remembered_for_a_week(jobs: JobStore) -> None:
    old, young = [await add(jobs, queued(n)) for n in range(2)]
    await jobs.replace(ended(old, at=time.time() - KEPT_SECONDS - 60), lease=LONG)
    await jobs.replace(ended(young, at=time.time() - KEPT_SECONDS + 60), lease=LONG)
    assert await jobs.get(old.key) is None
    assert await ids_of(jobs, "acme") == [young.id]
    newest = await add(jobs, queued(2))
    assert await ids_of(jobs, "acme", limit=1) == [newest.id, young.id]


async def test_only_so_many_finished_jobs_are_kept_and_every_unfinished_one(jobs: JobStore) -> None:
    records = [await add(jobs, queued(n)) for n in range(6)]
    for record in (records[0], *records[2:]):
        await jobs.replace(ended(record), lease=LONG)
    other = await add(jobs, queued(0, tenant="zeta"))
    await jobs.replace(ended(other), lease=LONG)
    newest = await add(jobs, queued(9), keep=3)
    kept = [newest.id, records[5].id, records[4].id, records[1].id]
    assert await ids_of(jobs, "acme") == kept
    assert await jobs.get(records[0].key) is None
    assert await jobs.get(records[3].key) is None
    assert await ids_of(jobs, "zeta") == [other.id]


@pytest.mark.parametrize("name", ["", "a b", "a:b", "{x}", "x" * 129])
async def test_what_is_not_a_name_is_not_stored(jobs: JobStore, name: str) -> None:
    with pytest.raises(ProfileInvalid, match="tenant: "):
        await add(jobs, queued(tenant=name))
    with pytest.raises(ProfileInvalid, match="name: "):
        await add(jobs, queued(profile=name))
    assert await jobs.unfinished() == []


async def test_jobs_and_profiles_do_not_see_each_other(store: ProfileStore, make_profile: Callable[..., Any]) -> None:
    record = await add(store.jobs, queued(profile="jobs"))
    await store.put(ProfileKey("acme", "jobs"), make_profile())
    await store.put(ProfileKey("jobs", "unfinished"), make_profile())
    assert [line.name for line in (await store.list("acme", limit=10)).profiles] == ["jobs"]
    assert await ids_of(store.jobs, "acme") == [record.id]
    assert await store.jobs.unfinished() == [(record, False)]


async def test_what_one_server_wrote_another_reads_and_may_end(two: tuple[JobStore, JobStore]) -> None:
    mine, theirs = two
    record = await add(mine, queued())
    assert await theirs.get(record.key) == (record, False)
    assert await theirs.unfinished() == [(record, False)]
    cancelled = replace(record, status="cancelled", finished=time.time())
    assert await theirs.replace(cancelled, lease=OVER) is True
    assert await mine.renew([record.key], lease=LONG) == [False]
    assert await mine.replace(replace(record, status="running"), lease=LONG) is False
    assert await mine.get(record.key) == (cancelled, False)


async def test_the_limit_holds_over_all_servers(two: tuple[JobStore, JobStore]) -> None:
    adds = (add(two[n % 2], queued(n), most=3) for n in range(12))
    results = await asyncio.gather(*adds, return_exceptions=True)
    assert sum(isinstance(result, TooManyJobs) for result in results) == 9
