from __future__ import annotations

import asyncio

from xpeft_profiles import JobRecord, ProfileKey, new_job_id
from xpeft_server.jobs.job import Job
from xpeft_server.jobs.requests import TuningRequest
from xpeft_server.jobs.turns import Turns


def job(tenant: str, name: str) -> Job:
    record = JobRecord(tenant=tenant, id=new_job_id(0.0), profile=name, owner="this", status="queued", created=0.0)
    return Job(record, TuningRequest(ProfileKey(tenant, name), (), None, {}), on_end=lambda _: None)


def turns_of(*jobs: tuple[str, str]) -> Turns:
    turns = Turns()
    for tenant, name in jobs:
        turns.add(job(tenant, name))
    return turns


async def taken(turns: Turns, count: int) -> list[str]:
    return [(await turns.take()).record.profile for _ in range(count)]


async def test_a_tenants_jobs_come_in_their_order() -> None:
    assert await taken(turns_of(("a", "1"), ("a", "2"), ("a", "3")), 3) == ["1", "2", "3"]


async def test_tenants_take_turns_however_many_jobs_each_has() -> None:
    turns = turns_of(("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("c", "c2"))
    assert await taken(turns, 6) == ["a1", "b1", "c1", "a2", "c2", "a3"]


async def test_who_had_the_last_turn_waits_for_who_came_later() -> None:
    turns = turns_of(("a", "a1"))
    assert await taken(turns, 1) == ["a1"]
    turns.add(job("a", "a2"))
    turns.add(job("b", "b1"))
    assert await taken(turns, 2) == ["b1", "a2"]


async def test_taking_waits_for_a_job() -> None:
    turns = Turns()
    waiting = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    late = job("a", "late")
    turns.add(late)
    assert await waiting is late


async def test_a_removed_job_is_not_taken() -> None:
    turns = Turns()
    jobs = [job("a", "1"), job("a", "2"), job("b", "3")]
    for each in jobs:
        turns.add(each)
    turns.remove(jobs[0])
    turns.remove(jobs[2])
    turns.remove(jobs[2])
    assert await taken(turns, 1) == ["2"]
    waiting = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
