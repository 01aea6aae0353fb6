"""Jobs one after the other, and in numbers."""

from __future__ import annotations

import pytest

from xpeft_server.jobs.errors import WorkerDied


async def test_a_list_is_newest_first_page_by_page(client, worker, tune):
    jobs = [await tune(client, f"p{n}") for n in range(4)]
    await worker.begins()
    first = (await client.get("/v1/jobs?limit=3")).json()
    rest = (await client.get(f"/v1/jobs?limit=3&cursor={first['next_cursor']}")).json()
    assert first["object"] == "list"
    assert [job["id"] for job in first["data"] + rest["data"]] == [job["id"] for job in reversed(jobs)]
    assert rest["next_cursor"] is None
    assert rest["data"][0]["status"] == "running"


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=1001", "limit"), ("prefix=a", "prefix"), ("cursor=%3f", "cursor")],
)
async def test_a_list_that_cannot_be_is_422(client, query, param):
    answer = await client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize("path", ["/v1/jobs/", "/v1/jobs/a/b", "/v1/jobs/a/cancel/b", "/v1/jobs//cancel"])
async def test_a_path_near_those_of_jobs_is_404(client, path):
    for method in ("GET", "POST"):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_jobs_are_counted_by_state_and_outcome(client, worker, profile_file, metric, tune, becomes):
    jobs = [await tune(client, name) for name in "abc"]
    await worker.begins()
    assert metric('xpeft_tuning_jobs_unfinished{status="running"}') == 1
    assert metric('xpeft_tuning_jobs_unfinished{status="queued"}') == 2
    await client.post(f"/v1/jobs/{jobs[1]['id']}/cancel")
    worker.ends(WorkerDied("gone"))
    await worker.begins(2)
    worker.ends(profile_file(1))
    await becomes(client, jobs[2], "succeeded")
    for outcome in ("succeeded", "failed", "cancelled"):
        assert metric(f'xpeft_tuning_jobs_total{{outcome="{outcome}"}}') == 1
    for status in ("queued", "running"):
        assert metric(f'xpeft_tuning_jobs_unfinished{{status="{status}"}}') == 0
