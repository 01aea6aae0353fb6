"""How a job ends whose worker, profile or store does not do as hoped."""

from __future__ import annotations

import pytest

from xpeft_profiles import StoreUnavailable
from xpeft_server.jobs.errors import TuningFailed, WorkerDied

FILE = {"content-type": "application/octet-stream"}


async def test_a_job_fails_with_what_the_worker_says_and_the_next_is_worked_on(
    client, worker, profile_file, tune, becomes
):
    first, second = await tune(client, "a"), await tune(client, "b")
    await worker.begins()
    said = {"message": "too small", "type": "invalid_request_error", "param": "examples", "code": "invalid_examples"}
    worker.ends(TuningFailed(**said))
    failed = await becomes(client, first, "failed")
    assert (failed["error"], failed["result"]) == (said, None)
    await worker.begins(2)
    worker.ends(profile_file(1))
    await becomes(client, second, "succeeded")


async def test_a_worker_that_dies_fails_its_job(client, worker, tune, becomes):
    job = await tune(client)
    await worker.begins()
    worker.ends(WorkerDied("the tuning worker ended by signal 9"))
    error = (await becomes(client, job, "failed"))["error"]
    assert (error["code"], error["type"]) == ("worker_died", "server_error")
    assert "signal 9" in error["message"]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda build: build(1, bank="sha256:" + "00" * 32), "wrong_bank"),
        (lambda build: build(1, hidden=4), "invalid_profile"),
        (lambda build: build(1) + b"\0" * 2048, "invalid_profile"),
        (lambda build: b"no profile", "invalid_profile"),
    ],
)
async def test_what_an_upload_would_be_refused_for_fails_the_job(
    client, worker, profile_file, make, code, tune, becomes
):
    job = await tune(client)
    await worker.begins()
    worker.ends(make(profile_file))
    assert (await becomes(client, job, "failed"))["error"]["code"] == code
    assert (await client.get("/v1/profiles/desk")).status_code == 404


async def test_a_bug_in_the_way_fails_one_job_and_tells_no_secrets(
    client, worker, profile_file, store, caplog, tune, becomes
):
    put, store.put = store.put, None
    first, second = await tune(client, "a"), await tune(client, "b")
    await worker.begins()
    worker.ends(profile_file(1))
    error = (await becomes(client, first, "failed"))["error"]
    assert (error["code"], error["message"]) == ("internal_error", "the server failed")
    assert "NoneType" in caplog.text
    store.put = put
    await worker.begins(2)
    worker.ends(profile_file(1))
    await becomes(client, second, "succeeded")


async def test_the_result_replaces_what_somebody_else_uploaded_meanwhile(client, worker, profile_file, tune, becomes):
    job = await tune(client)
    await worker.begins()
    await client.put("/v1/profiles/desk", content=profile_file(1), headers=FILE)
    worker.ends(profile_file(2))
    done = await becomes(client, job, "succeeded")
    assert (await client.get("/v1/profiles/desk")).json()["version"] == done["result"]["profile_version"]


async def test_a_precondition_is_asked_at_the_end(client, worker, profile_file, submit, becomes):
    async def outcome(seed, **headers):
        answer = await submit(client, headers={key.replace("_", "-"): v for key, v in headers.items()})
        await worker.begins(len(worker.seen) + 1)
        worker.ends(profile_file(seed))
        return await becomes(client, answer.json(), "succeeded", "failed")

    first = await outcome(1, if_none_match="*")
    assert first["status"] == "succeeded"
    again = await outcome(2, if_none_match="*")
    assert (again["status"], again["error"]["code"]) == ("failed", "precondition_failed")
    assert first["result"]["profile_version"] in again["error"]["message"]
    assert (await outcome(2, if_match=f'"{first["result"]["profile_version"]}"'))["status"] == "succeeded"
    assert (await outcome(3, if_match='"sha256:other"'))["error"]["type"] == "precondition_error"


async def test_a_store_that_is_down_for_a_moment_costs_no_tuning(client, worker, profile_file, store, submit, becomes):
    put, calls = store.put, []

    async def put_at_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            await put(*args, **kwargs)  # it was written, but the answer was lost
            raise StoreUnavailable("gone")
        return await put(*args, **kwargs)

    store.put = put_at_second
    answer = await submit(client, headers={"if-none-match": "*"})
    await worker.begins()
    worker.ends(profile_file(1))
    await becomes(client, answer.json(), "succeeded")
    assert len(calls) == 2
