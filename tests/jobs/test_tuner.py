"""Jobs between servers that share a store: leases, orphans, and what happens to a store that does not answer."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from xpeft_profiles import JobKey, JobRecord, ProfileKey, RecordDamaged, StoreUnavailable, new_job_id
from xpeft_server.jobs import records, tuner
from xpeft_server.jobs.errors import JobFinished, JobNotFound
from xpeft_server.jobs.process_identity import this_process
from xpeft_server.jobs.records import LEASE

GONE = {"loss": 0.5}


def orphan(jobs: Any, owner: str, **fields: Any) -> JobRecord:
    """Left in the store by a server that is no more."""
    created = jobs._clock()
    record = JobRecord(
        tenant="acme",
        id=new_job_id(created),
        profile="desk",
        owner=owner,
        status="running",
        created=created,
        **fields,
    )
    jobs._records[record.key] = record
    jobs._leases[record.key] = created + LEASE
    return record


def dead_owner() -> str:
    place, _, start = this_process().rpartition(" ")
    return f"{place} {int(start) - 1}"


async def test_another_server_shows_the_job_as_its_owner_last_told_it(new_server: Any, clock: Any) -> None:
    one, two = new_server(), new_server()
    await one.tuner.start()
    await two.tuner.start()
    job = await one.submit()
    assert await two.tuner.get(job.key) == job
    await one.worker.begins()
    one.worker.progress(GONE)
    await one.round()
    assert (await two.tuner.get(job.key)).progress == GONE
    assert (await two.tuner.list("acme", limit=9, cursor=None))[0] == [await one.tuner.get(job.key)]


async def test_a_job_that_its_server_keeps_renewing_is_never_interrupted(new_server: Any, clock: Any) -> None:
    one, two = new_server(), new_server()
    await one.tuner.start()
    running, queued = await one.submit("a"), await one.submit("b")
    await one.worker.begins()
    for _ in range(20):
        clock.now += LEASE - 1
        await one.round()
        assert (await two.tuner.get(running.key)).status == "running"
        assert (await two.tuner.get(queued.key)).status == "queued"


async def test_a_job_that_nobody_answers_for_reads_as_interrupted_and_stays_so(
    server: Any, new_server: Any, jobs: Any, clock: Any
) -> None:
    job = orphan(jobs, "elsewhere boot pid:[1] 7 99")
    clock.now += LEASE - 1
    assert (await server.tuner.get(job.key)).status == "running"
    clock.now += 1
    (listed,), _ = await server.tuner.list("acme", limit=9, cursor=None)
    assert (listed.status, listed.error["code"]) == ("failed", "interrupted")
    assert listed.finished is not None
    assert await new_server().tuner.get(job.key) == listed
    assert await jobs.renew([job.key], lease=LEASE) == [False]


async def test_a_server_that_comes_back_late_loses_the_job_that_was_told_interrupted(
    server: Any, new_server: Any, clock: Any
) -> None:
    job = await server.submit()
    await server.worker.begins()
    clock.now += LEASE
    told = await new_server().tuner.get(job.key)
    assert told.error["code"] == "interrupted"
    await server.round()
    await server.becomes(job.key, "failed")
    await server.worker.kills("desk")
    assert await server.tuner.get(job.key) == told


async def test_a_server_that_starts_ends_the_jobs_of_dead_processes_and_no_others(
    new_server: Any, jobs: Any, clock: Any
) -> None:
    dead, alive = orphan(jobs, dead_owner()), orphan(jobs, this_process())
    elsewhere = orphan(jobs, "elsewhere boot pid:[1] 7 99")
    server = new_server()
    await server.tuner.start()
    assert (await server.tuner.get(dead.key)).error["code"] == "interrupted"
    for other in (alive, elsewhere):
        assert await server.tuner.get(other.key) == other


async def test_orphans_are_ended_when_a_store_that_was_down_at_the_start_is_back(new_server: Any, jobs: Any) -> None:
    job = orphan(jobs, dead_owner())
    jobs.down = True
    server = new_server()
    await server.tuner.start()
    assert (await server.tuner.get(job.key)).status == "running"
    jobs.down = False
    await server.round()
    assert (await server.tuner.get(job.key)).error["code"] == "interrupted"


async def test_what_others_left_behind_does_not_cost_a_server_its_own_leases(
    new_server: Any, jobs: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damaged() -> Any:
        raise RecordDamaged("the record of a tuning job cannot be read")

    monkeypatch.setattr(jobs, "unfinished", damaged)
    server = new_server()
    await server.tuner.start()
    job = await server.submit()
    await server.worker.begins()
    for _ in range(4):
        clock.now += LEASE / 2
        await server.round()
        assert (await new_server().tuner.get(job.key)).status == "running"


async def test_a_job_that_was_ended_in_words_that_cannot_be_read_costs_no_other_its_lease(
    server: Any, new_server: Any, jobs: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await server.submit("first"), await server.submit("second")
    await server.worker.begins()
    get = jobs.get
    await new_server().tuner.cancel(first.key)

    async def unreadable(key: JobKey) -> Any:
        if key == first.key:
            raise RecordDamaged("the record of a tuning job cannot be read")
        return await get(key)

    monkeypatch.setattr(jobs, "get", unreadable)
    for _ in range(4):
        clock.now += LEASE / 2
        await server.round()
    await server.worker.kills("first")
    await server.worker.begins(2)
    assert (await server.becomes(second.key, "running")).profile == "second"
    assert (await new_server().tuner.get(second.key)).status == "running"


async def test_while_the_store_is_down_work_goes_on_and_is_told_afterwards(
    server: Any, new_server: Any, jobs: Any, tuned: Any, clock: Any
) -> None:
    job = await server.submit()
    future = await server.worker.begins()
    jobs.down = True
    clock.now += 2 * LEASE
    await server.round()
    future.set_result(tuned)
    done = await server.becomes(job.key, "succeeded")
    assert (await server.tuner.list("acme", limit=9, cursor=None))[0] == [done]
    jobs.down = False
    await server.round()
    assert await new_server().tuner.get(job.key) == done


async def test_leases_that_lapsed_while_the_store_was_away_end_no_job_whose_server_is_still_there(
    server: Any, new_server: Any, jobs: Any, clock: Any
) -> None:
    job = await server.submit()
    await server.worker.begins()
    other = new_server()
    await other.tuner.start()
    jobs.down = True
    await other.round()
    clock.now += 2 * LEASE
    jobs.down = False
    assert (await other.tuner.get(job.key)).status == "running"
    await other.round()
    (listed,), _ = await other.tuner.list("acme", limit=9, cursor=None)
    assert listed.status == "running"
    await server.round()
    assert await jobs.renew([job.key], lease=LEASE) == [True]


async def test_a_job_that_nobody_answers_for_when_the_store_is_back_is_interrupted_a_lease_later(
    server: Any, jobs: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = orphan(jobs, "elsewhere boot pid:[1] 7 99")
    for jobs.down in (True, False):
        await server.round()
    clock.now += LEASE
    assert (await server.tuner.get(job.key)).status == "running"
    monkeypatch.setattr(records, "LEASE", 0.0)  # that long has the store been back
    assert (await server.tuner.get(job.key)).error["code"] == "interrupted"


async def test_an_outage_is_told_when_it_begins_and_when_it_is_over(
    server: Any, jobs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for jobs.down in (True, True, True, False, False, True):
            await server.round()
    said = [record.message for record in caplog.records if "tuning jobs" in record.message]
    down = "the tuning jobs cannot be saved: the store is down"
    assert said == [down, "the tuning jobs are saved again", down]


async def test_a_job_can_be_cancelled_at_another_server(server: Any, new_server: Any) -> None:
    other = new_server()
    running, queued = await server.submit("a"), await server.submit("b")
    await server.worker.begins()
    for job in (running, queued):
        assert (await other.tuner.cancel(job.key)).status == "cancelled"
        assert (await other.tuner.cancel(job.key)).status == "cancelled"
    await server.round()
    assert (await server.tuner.get(running.key)).status == "cancelled"
    await server.worker.kills("a")
    await server.submit("c")
    await server.worker.begins(2)
    assert server.worker.seen == ["a", "c"]


@pytest.mark.parametrize("how", ["cancelled", "interrupted"])
async def test_a_job_that_another_server_ended_publishes_nothing(
    server: Any, new_server: Any, tuned: Any, store: Any, clock: Any, how: str
) -> None:
    """Also where the worker is done before this server has heard of it."""
    other = new_server()
    job = await server.submit()
    future = await server.worker.begins()
    if how == "cancelled":
        assert (await other.tuner.cancel(job.key)).status == "cancelled"
    else:
        clock.now += LEASE + 1
        assert (await other.tuner.get(job.key)).error["code"] == "interrupted"
    future.set_result(tuned)
    await server.becomes(job.key, "cancelled" if how == "cancelled" else "failed")
    assert await store.versions([ProfileKey("acme", "desk")]) == [None]


async def test_a_finished_job_cannot_be_cancelled_at_another_server(server: Any, new_server: Any, tuned: Any) -> None:
    job = await server.submit()
    (await server.worker.begins()).set_result(tuned)
    await server.becomes(job.key, "succeeded")
    with pytest.raises(JobFinished, match="succeeded"):
        await new_server().tuner.cancel(job.key)
    with pytest.raises(JobNotFound):
        await new_server().tuner.cancel(job.key._replace(tenant="zeta"))


async def test_another_servers_job_is_followed_to_its_end(server: Any, new_server: Any, tuned: Any) -> None:
    job = await server.submit()
    future = await server.worker.begins()
    await server.round()
    follower = new_server().tuner.follow(job.key)
    assert (await anext(follower)).status == "running"
    future.set_result(tuned)
    assert (await anext(follower)).status == "succeeded"
    with pytest.raises(StopAsyncIteration):
        await anext(follower)


async def test_a_follower_of_another_servers_job_is_let_go_when_this_one_stops(server: Any, new_server: Any) -> None:
    job = await server.submit()
    other = new_server()
    follower = other.tuner.follow(job.key)
    await anext(follower)
    await server.worker.begins()
    waiting = asyncio.ensure_future(anext(follower, None))
    await asyncio.sleep(0)
    await other.tuner.close()
    assert await waiting is None
    assert (await server.tuner.get(job.key)).status == "running"


async def test_a_server_that_stops_interrupts_what_runs_and_what_waits_and_says_so_to_the_store(
    server: Any, new_server: Any
) -> None:
    running, queued = await server.submit("a"), await server.submit("b")
    await server.worker.begins()
    await server.tuner.close()
    assert server.worker.closed
    assert server.worker.killed == ["a"]
    other = new_server()
    for job in (running, queued):
        record = await other.tuner.get(job.key)
        assert (record.status, record.error["code"]) == ("failed", "interrupted")


async def test_a_server_stops_while_its_store_is_down(server: Any, jobs: Any) -> None:
    await server.submit()
    await server.worker.begins()
    jobs.down = True
    await server.tuner.close()
    assert server.worker.killed == ["desk"]


async def test_a_job_that_could_not_be_written_down_is_not_worked_on(server: Any, jobs: Any) -> None:
    async def refuse(record: JobRecord, **limits: Any) -> None:
        raise StoreUnavailable("the store is down")

    jobs.add = refuse
    with pytest.raises(StoreUnavailable):
        await server.submit()
    await asyncio.sleep(0)
    assert server.worker.seen == []


async def test_a_job_that_was_written_down_without_an_answer_takes_nobodys_place(server: Any, jobs: Any) -> None:
    """The store did what it was asked, and the connection broke before it could say so."""
    add = jobs.add

    async def tell_nothing(record: JobRecord, **limits: Any) -> None:
        await add(record, **limits)
        raise StoreUnavailable("the store went away")

    jobs.add = tell_nothing
    for _ in range(4):
        with pytest.raises(StoreUnavailable):
            await server.submit()
    jobs.add = add
    await server.round()
    records, _ = await server.tuner.list("acme", limit=9, cursor=None)
    assert {(record.status, record.error["code"]) for record in records} == {("failed", "interrupted")}
    await server.submit("another")
    await server.worker.begins()
    assert server.worker.seen == ["another"]


async def test_what_may_have_been_written_down_is_not_kept_for_ever(
    server: Any, jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(record: JobRecord, **limits: Any) -> None:
        raise StoreUnavailable("the store is down")

    monkeypatch.setattr(tuner, "LEASE", 0.01)
    jobs.add, jobs.down = refuse, True
    with pytest.raises(StoreUnavailable):
        await server.submit()
    async with asyncio.timeout(20):
        while server.tuner._records.own:
            await asyncio.sleep(0.01)


async def test_a_job_whose_record_was_dropped_is_stopped(server: Any, jobs: Any) -> None:
    job = await server.submit()
    await server.worker.begins()
    jobs._records.clear()
    jobs._leases.clear()
    await server.round()
    with pytest.raises(JobNotFound):
        await server.tuner.get(job.key)
    await server.worker.kills("desk")


async def test_a_queued_job_costs_one_renewal_and_no_write(server: Any, jobs: Any) -> None:
    await server.submit("a")
    await server.submit("b")
    await server.worker.begins()
    written = len(jobs.replaced)
    for _ in range(3):
        await server.round()
    assert len(jobs.replaced) == written
    server.worker.progress(GONE)
    await server.round()
    assert [record.progress for record in jobs.replaced[written:]] == [GONE]


async def test_no_record_of_a_job_has_its_examples(server: Any, jobs: Any, tuned: Any) -> None:
    job = await server.submit()
    (await server.worker.begins()).set_result(tuned)
    await server.becomes(job.key, "succeeded")
    assert "TuningExample" not in repr([*jobs.replaced, job])
    assert replace(job, status="queued") == job
