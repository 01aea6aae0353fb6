"""Whose jobs are worked on when, and who may see them."""

from __future__ import annotations

EVENTS = {"accept": "text/event-stream"}


async def test_a_tenant_has_no_more_jobs_than_the_quota(client, worker, profile_file, submit, tune, becomes, metric):
    jobs = [await tune(client, f"p{n}") for n in range(4)]
    refused = await submit(client)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
    assert int(refused.headers["retry-after"]) >= 1
    assert metric('xpeft_refusals_total{reason="tuning_jobs"}') == 1
    await worker.begins()
    worker.ends(profile_file(1))
    await becomes(client, jobs[0], "succeeded")
    await tune(client)
    assert metric('xpeft_refusals_total{reason="tuning_jobs"}') == 1


async def test_the_quota_is_each_tenants_own(keyed, worker, submit, tune):
    for n in range(4):
        await tune(keyed("acme-admin"), f"p{n}")
    assert (await submit(keyed("acme-admin"))).status_code == 429
    await tune(keyed("other-admin"))


async def test_tenants_take_turns(keyed, worker, profile_file, tune):
    acme, other = keyed("acme-admin"), keyed("other-admin")
    for n in range(3):
        await tune(acme, f"a{n}")
    for n in range(2):
        await tune(other, f"o{n}")
    for number in range(1, 6):
        await worker.begins(number)
        worker.ends(profile_file(number))
    assert [request.profile.name for request in worker.seen] == ["a0", "o0", "a1", "o1", "a2"]


async def test_one_job_is_worked_on_at_a_time(client, worker, tune, job_of):
    first, second = await tune(client, "a"), await tune(client, "b")
    await worker.begins()
    assert (await job_of(client, first))["status"] == "running"
    assert (await job_of(client, second))["status"] == "queued"
    assert len(worker.seen) == 1


async def test_another_tenants_job_is_404_on_every_route(keyed, worker, tune, job_of):
    job = await tune(keyed("acme-admin"))
    await worker.begins()
    other = keyed("other-admin")
    path = f"/v1/jobs/{job['id']}"
    for answer in [
        await other.get(path),
        await other.get(path, headers=EVENTS),
        await other.post(path + "/cancel"),
        await other.get("/v1/jobs/job_0000"),
        await other.post("/v1/jobs/job_0000/cancel"),
    ]:
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
    assert (await other.head(path)).status_code == 404
    assert (await other.get("/v1/jobs")).json()["data"] == []
    assert (await job_of(keyed("acme-infer"), job))["status"] == "running"
    assert worker.killed == []


async def test_a_key_that_only_infers_reads_jobs_and_changes_none(keyed, submit, tune):
    job = await tune(keyed("acme-admin"))
    reader = keyed("acme-infer")
    assert (await reader.get(f"/v1/jobs/{job['id']}")).status_code == 200
    assert [each["id"] for each in (await reader.get("/v1/jobs")).json()["data"]] == [job["id"]]
    for refused in (await submit(reader), await reader.post(f"/v1/jobs/{job['id']}/cancel")):
        assert refused.status_code == 403
