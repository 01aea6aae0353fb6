"""Jobs that somebody takes back."""

from __future__ import annotations

import asyncio

import pytest

from xpeft_server.jobs.errors import WorkerDied


async def test_a_queued_job_that_is_cancelled_never_reaches_the_worker(client, worker, profile_file, tune, job_of):
    first, second, third = [await tune(client, name) for name in "abc"]
    await worker.begins()
    answer = await client.post(f"/v1/jobs/{second['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json()["finished"] is not None
    worker.ends(profile_file(1))
    await worker.begins(2)
    assert [request.profile.name for request in worker.seen] == ["a", "c"]
    assert (await job_of(client, first))["status"] == "succeeded"
    assert (await job_of(client, third))["status"] == "running"
    assert (await job_of(client, second))["status"] == "cancelled"


async def test_a_running_job_that_is_cancelled_takes_its_worker_with_it_and_the_next_begins(
    client, worker, tune, job_of
):
    first, _ = await tune(client, "a"), await tune(client, "b")
    await worker.begins()
    answer = await client.post(f"/v1/jobs/{first['id']}/cancel")
    assert answer.json() == {**await job_of(client, first), "status": "cancelled"}
    await worker.begins(2)
    assert [request.profile.name for request in worker.killed] == ["a"]
    assert (await client.get("/v1/profiles/a")).status_code == 404


async def test_a_cancelled_job_may_be_cancelled_again(client, worker, tune):
    job = await tune(client)
    await worker.begins()
    answers = [await client.post(f"/v1/jobs/{job['id']}/cancel") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_finished_job_cannot_be_cancelled(client, worker, profile_file, succeeds, tune, job_of, becomes):
    job = await tune(client)
    await worker.begins()
    worker.ends(profile_file(1) if succeeds else WorkerDied("gone"))
    done = await becomes(client, job, "succeeded" if succeeds else "failed")
    answer = await client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_finished")
    assert await job_of(client, job) == done


async def test_a_job_whose_profile_is_being_stored_is_no_longer_cancelled(
    client, worker, store, profile_file, tune, job_of
):
    go, storing = asyncio.Event(), asyncio.Event()
    put = store.put

    async def slow_put(*args, **kwargs):
        storing.set()
        await go.wait()
        return await put(*args, **kwargs)

    store.put = slow_put
    job = await tune(client)
    await worker.begins()
    worker.ends(profile_file(1))
    async with asyncio.timeout(10):
        await storing.wait()
        cancelling = asyncio.create_task(client.post(f"/v1/jobs/{job['id']}/cancel"))
        await asyncio.sleep(0)
        go.set()
        assert (await cancelling).status_code == 409
    assert (await job_of(client, job))["status"] == "succeeded"
    assert (await client.get("/v1/profiles/desk")).status_code == 200
