"""Tuning over HTTP: what is taken, what becomes of it, and who may see it."""

from __future__ import annotations

import asyncio
import contextlib
import time

import orjson
import pytest

from xpeft_profiles import Match, ProfileKey, StoreUnavailable
from xpeft_server.api import event_stream
from xpeft_server.api.event_stream import DONE
from xpeft_server.jobs.errors import TuningFailed, WorkerDied

EXAMPLES = [
    {"text": "My bag is lost", "label": "baggage"},
    {"text": "Money back", "text_pair": "please", "label": "refund"},
]
BODY = {"examples": EXAMPLES}
TUNE = "/v1/profiles/desk/tune"
FILE = {"content-type": "application/octet-stream"}
EVENTS = {"accept": "text/event-stream"}


async def tune(client, name="desk", **fields):
    answer = await client.post(f"/v1/profiles/{name}/tune", json={**BODY, **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()


async def job_of(client, job):
    return (await client.get(f"/v1/jobs/{job['id']}")).json()


async def becomes(client, job, status):
    async with asyncio.timeout(10):
        while (found := await job_of(client, job))["status"] != status:
            await asyncio.sleep(0)
    return found


class Stream:
    """A client of the application that reads an answer while it comes, and can go away."""

    def __init__(self, app, path, headers=EVENTS):
        self.left = asyncio.Event()
        self.parts = asyncio.Queue()
        self.start = None
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self.task = asyncio.create_task(app(scope, self._receive(), self._send))

    def _receive(self):
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive():
            with contextlib.suppress(StopIteration):
                return next(messages)
            await self.left.wait()
            return {"type": "http.disconnect"}

        return receive

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.parts.put_nowait(message["body"])

    async def event(self):
        """The next event's document, or DONE after the last."""
        async with asyncio.timeout(10):
            part = await self.parts.get()
        event, done, _ = part.partition(DONE)
        if done:
            self.parts.put_nowait(DONE)
        return DONE if not event else orjson.loads(event.removeprefix(b"data: "))


@pytest.fixture
async def follow(app):
    streams = []

    def start(job, **headers):
        streams.append(Stream(app, f"/v1/jobs/{job['id']}", {**EVENTS, **headers}))
        return streams[-1]

    yield start
    for stream in streams:
        stream.left.set()
        async with asyncio.timeout(10):
            await stream.task


async def test_a_job_is_accepted_worked_on_and_its_profile_goes_live(client, worker, profile_file, store):
    began = int(time.time())
    answer = await client.post(TUNE, json=BODY)
    queued = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{queued['id']}"
    assert began <= queued["created"] <= time.time()
    assert queued == {
        "id": queued["id"],
        "object": "tuning.job",
        "profile": "desk",
        "status": "queued",
        "created": queued["created"],
        "started": None,
        "finished": None,
        "progress": None,
        "result": None,
        "error": None,
    }
    await worker.begins()
    running = await job_of(client, queued)
    assert running == {**queued, "status": "running", "started": running["started"]}
    worker.progress({"epoch": 1, "epochs": 15, "step": 2, "steps": 5, "loss": 0.5})
    assert (await job_of(client, queued))["progress"] == {"epoch": 1, "epochs": 15, "step": 2, "steps": 5, "loss": 0.5}
    worker.ends(profile_file(7))
    done = await becomes(client, queued, "succeeded")
    profile = (await client.get("/v1/profiles/desk")).json()
    assert done["result"]["profile_version"] == profile["version"]
    assert done["result"]["accuracy"]["held_out"] == 1.0
    assert queued["created"] <= done["started"] <= done["finished"]
    assert done["error"] is None
    assert await store.versions([ProfileKey("default", "desk")]) == [profile["version"]]


async def test_what_was_sent_reaches_the_worker_and_nothing_else(client, worker):
    settings = {"epochs": 3, "k": 4, "lr_masks": 1, "shared_head": "mood", "description": "für alle"}
    rows = [{**row, "split": "train"} for row in EXAMPLES]
    await tune(client, examples=rows, labels=["refund", "baggage"], settings=settings)
    await worker.begins()
    (request,) = worker.seen
    assert request.profile == ("default", "desk")
    assert [tuple(row) for row in request.examples] == [
        ("My bag is lost", "baggage", None, "train"),
        ("Money back", "refund", "please", "train"),
    ]
    assert request.labels == ("refund", "baggage")
    assert request.settings == settings
    assert request.match == Match()


async def test_labels_may_be_numbers(client, worker):
    await tune(client, examples=[{"text": "a", "label": 3}, {"text": "b", "label": -0.5}], labels=["stars"])
    await worker.begins()
    assert [row.label for row in worker.seen[0].examples] == [3.0, -0.5]
    assert all(isinstance(row.label, float) for row in worker.seen[0].examples)


def rows(**last):
    return {"examples": [*EXAMPLES, {"text": "c", "label": "refund", **last}]}


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({}, "examples", "missing"),
        ({"examples": []}, "examples", "at least 1"),
        ({"examples": "x"}, "examples", "list"),
        ({**BODY, "rows": 1}, "rows", "no field"),
        (rows(colour="red"), "examples[2].colour", "no field"),
        (rows(text=""), "examples[2].text", "at least 1"),
        (rows(text=3), "examples[2].text", "3"),
        (rows(text_pair=""), "examples[2].text_pair", "at least 1"),
        (rows(label=""), "examples[2].label", "at least 1"),
        (rows(label=None), "examples[2].label", "a text or a number"),
        (rows(label=True), "examples[2].label", "a text or a number"),
        (rows(label=["a"]), "examples[2].label", "a text or a number"),
        (rows(label=2.5), "examples[2].label", "2.5"),
        ({"examples": [{"text": "a", "label": 1e9}]}, "examples[0].label", "1000000000.0"),
        (rows(split="eval"), "examples[2].split", "eval"),
        (rows(split="train"), "examples[2].split", "either every example has a split"),
        ({"examples": EXAMPLES * 5}, "examples", "10 examples, more than the 8"),
        ({**BODY, "labels": []}, "labels", "at least 1"),
        ({**BODY, "labels": ["refund", ""]}, "labels[1]", "at least 1"),
        ({**BODY, "labels": ["refund", "refund"]}, "labels", "'refund' 2 times"),
        ({**BODY, "labels": ["refund"]}, "examples[0].label", "'baggage'"),
        ({**BODY, "settings": []}, "settings", "[]"),
        ({**BODY, "settings": {"batch_tokens": 5}}, "settings.batch_tokens", "no field"),
        ({**BODY, "settings": {"epochs": 0}}, "settings.epochs", "not 0"),
        ({**BODY, "settings": {"epochs": 1001}}, "settings.epochs", "not 1001"),
        ({**BODY, "settings": {"epochs": None}}, "settings.epochs", "None"),
        ({**BODY, "settings": {"epochs": 2.5}}, "settings.epochs", "2.5"),
        ({**BODY, "settings": {"kind": "firm"}}, "settings.kind", "firm"),
        ({**BODY, "settings": {"k": 0}}, "settings.k", "not 0"),
        ({**BODY, "settings": {"lr_masks": -1}}, "settings.lr_masks", "-1"),
        ({**BODY, "settings": {"temperature": 0}}, "settings.temperature", "not 0"),
        ({**BODY, "settings": {"held_out": 1}}, "settings.held_out", "not 1"),
        ({**BODY, "settings": {"stop_on": "luck"}}, "settings.stop_on", "luck"),
        ({**BODY, "settings": {"shared_head": ""}}, "settings.shared_head", "at least 1"),
        ({**BODY, "settings": {"seed": 1 << 63}}, "settings.seed", ""),
    ],
)
async def test_what_cannot_be_tuned_is_422_and_names_field_and_value(client, worker, body, param, word):
    answer = await client.post(TUNE, json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert word in error["message"]
    assert (await client.get("/v1/jobs")).json()["data"] == []
    assert worker.seen == []


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ({"content": b"{}", "headers": {"content-type": "text/csv"}}, 415, "unsupported_media_type"),
        ({"json": {"examples": [{"text": "a" * 5000, "label": "b"}]}}, 413, "body_too_large"),
        ({"json": BODY, "headers": {"if-match": "sha256:unquoted"}}, 400, "invalid_header"),
    ],
)
async def test_a_body_that_is_none_is_refused(client, send, status, code):
    answer = await client.post(TUNE, **send)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("name", "code"), [("base", "reserved_name"), ("a b", "invalid_name"), ("x/y", "invalid_name")]
)
async def test_a_profile_that_cannot_be_stored_is_not_tuned(client, name, code):
    answer = await client.post(f"/v1/profiles/{name}/tune", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert answer.json()["error"]["param"] == "name"


async def test_a_profile_may_be_called_tune(client, profile_file):
    assert (await client.put("/v1/profiles/tune", content=profile_file(1), headers=FILE)).status_code == 201
    assert (await client.get("/v1/profiles/tune")).json()["name"] == "tune"
    assert (await client.get("/v1/profiles/tune/tune")).status_code == 405


async def test_a_tenant_has_no_more_jobs_than_the_quota(client, worker, profile_file):
    jobs = [await tune(client, f"p{n}") for n in range(4)]
    refused = await client.post(TUNE, json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
    assert int(refused.headers["retry-after"]) >= 1
    await worker.begins()
    worker.ends(profile_file(1))
    await becomes(client, jobs[0], "succeeded")
    await tune(client)


async def test_the_quota_is_each_tenants_own(keyed, worker):
    for n in range(4):
        await tune(keyed("acme-admin"), f"p{n}")
    assert (await keyed("acme-admin").post(TUNE, json=BODY)).status_code == 429
    await tune(keyed("other-admin"))


class TestASetting:
    @pytest.fixture
    def settings(self, settings):
        return settings.model_copy(update={"tuning_jobs_per_tenant": 0})

    async def test_of_no_jobs_switches_tuning_off(self, client):
        answer = await client.post(TUNE, json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "tuning_off")
        assert (await client.get("/v1/jobs")).json()["data"] == []


async def test_tenants_take_turns(keyed, worker, profile_file):
    acme, other = keyed("acme-admin"), keyed("other-admin")
    for n in range(3):
        await tune(acme, f"a{n}")
    for n in range(2):
        await tune(other, f"o{n}")
    for number in range(1, 6):
        await worker.begins(number)
        worker.ends(profile_file(number))
    assert [request.profile.name for request in worker.seen] == ["a0", "o0", "a1", "o1", "a2"]


async def test_one_job_is_worked_on_at_a_time(client, worker):
    first, second = await tune(client, "a"), await tune(client, "b")
    await worker.begins()
    assert (await job_of(client, first))["status"] == "running"
    assert (await job_of(client, second))["status"] == "queued"
    assert len(worker.seen) == 1


async def test_another_tenants_job_is_404_on_every_route(keyed, worker):
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


async def test_a_key_that_only_infers_reads_jobs_and_changes_none(keyed):
    job = await tune(keyed("acme-admin"))
    reader = keyed("acme-infer")
    assert (await reader.get(f"/v1/jobs/{job['id']}")).status_code == 200
    assert [each["id"] for each in (await reader.get("/v1/jobs")).json()["data"]] == [job["id"]]
    for path in (TUNE, f"/v1/jobs/{job['id']}/cancel"):
        assert (await reader.post(path, json=BODY)).status_code == 403


async def test_a_queued_job_that_is_cancelled_never_reaches_the_worker(client, worker, profile_file):
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


async def test_a_running_job_that_is_cancelled_takes_its_worker_with_it_and_the_next_begins(client, worker):
    first, _ = await tune(client, "a"), await tune(client, "b")
    await worker.begins()
    answer = await client.post(f"/v1/jobs/{first['id']}/cancel")
    assert answer.json() == {**await job_of(client, first), "status": "cancelled"}
    await worker.begins(2)
    assert [request.profile.name for request in worker.killed] == ["a"]
    assert (await client.get("/v1/profiles/a")).status_code == 404


async def test_a_cancelled_job_may_be_cancelled_again(client, worker):
    job = await tune(client)
    await worker.begins()
    answers = [await client.post(f"/v1/jobs/{job['id']}/cancel") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize("succeeds", [True, False])
async def test_a_finished_job_cannot_be_cancelled(client, worker, profile_file, succeeds):
    job = await tune(client)
    await worker.begins()
    worker.ends(profile_file(1) if succeeds else WorkerDied("gone"))
    done = await becomes(client, job, "succeeded" if succeeds else "failed")
    answer = await client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_finished")
    assert await job_of(client, job) == done


async def test_a_job_whose_profile_is_being_stored_is_no_longer_cancelled(client, worker, store, profile_file):
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


async def test_a_job_fails_with_what_the_worker_says_and_the_next_is_worked_on(client, worker, profile_file):
    first, second = await tune(client, "a"), await tune(client, "b")
    await worker.begins()
    said = {"message": "too small", "type": "invalid_request_error", "param": "examples", "code": "invalid_examples"}
    worker.ends(TuningFailed(**said))
    failed = await becomes(client, first, "failed")
    assert (failed["error"], failed["result"]) == (said, None)
    await worker.begins(2)
    worker.ends(profile_file(1))
    await becomes(client, second, "succeeded")


async def test_a_worker_that_dies_fails_its_job(client, worker):
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
async def test_what_an_upload_would_be_refused_for_fails_the_job(client, worker, profile_file, make, code):
    job = await tune(client)
    await worker.begins()
    worker.ends(make(profile_file))
    assert (await becomes(client, job, "failed"))["error"]["code"] == code
    assert (await client.get("/v1/profiles/desk")).status_code == 404


async def test_a_bug_in_the_way_fails_one_job_and_tells_no_secrets(client, worker, profile_file, store, caplog):
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


async def test_the_result_replaces_what_somebody_else_uploaded_meanwhile(client, worker, profile_file):
    job = await tune(client)
    await worker.begins()
    await client.put("/v1/profiles/desk", content=profile_file(1), headers=FILE)
    worker.ends(profile_file(2))
    done = await becomes(client, job, "succeeded")
    assert (await client.get("/v1/profiles/desk")).json()["version"] == done["result"]["profile_version"]


async def test_a_precondition_is_asked_at_the_end(client, worker, profile_file):
    async def outcome(seed, **headers):
        answer = await client.post(TUNE, json=BODY, headers={key.replace("_", "-"): v for key, v in headers.items()})
        await worker.begins(len(worker.seen) + 1)
        worker.ends(profile_file(seed))
        job = answer.json()
        async with asyncio.timeout(10):
            while (found := await job_of(client, job))["status"] in ("queued", "running"):
                await asyncio.sleep(0)
        return found

    first = await outcome(1, if_none_match="*")
    assert first["status"] == "succeeded"
    again = await outcome(2, if_none_match="*")
    assert (again["status"], again["error"]["code"]) == ("failed", "precondition_failed")
    assert first["result"]["profile_version"] in again["error"]["message"]
    assert (await outcome(2, if_match=f'"{first["result"]["profile_version"]}"'))["status"] == "succeeded"
    assert (await outcome(3, if_match='"sha256:other"'))["error"]["type"] == "precondition_error"


async def test_a_store_that_is_down_for_a_moment_costs_no_tuning(client, worker, profile_file, store):
    put, calls = store.put, []

    async def put_at_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            await put(*args, **kwargs)  # it was written, but the answer was lost
            raise StoreUnavailable("gone")
        return await put(*args, **kwargs)

    store.put = put_at_second
    answer = await client.post(TUNE, json=BODY, headers={"if-none-match": "*"})
    await worker.begins()
    worker.ends(profile_file(1))
    await becomes(client, answer.json(), "succeeded")
    assert len(calls) == 2


async def test_a_stream_has_the_job_at_once_its_changes_and_its_end(client, worker, profile_file, follow):
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    assert (await stream.event())["status"] == "running"
    assert (stream.start["status"], dict(stream.start["headers"])[b"content-type"]) == (200, b"text/event-stream")
    worker.progress({"epoch": 1, "epochs": 2, "step": 1, "steps": 1, "loss": 1.0})
    assert (await stream.event())["progress"]["loss"] == 1.0
    worker.ends(profile_file(1))
    last = await stream.event()
    assert last == await job_of(client, job)
    assert last["status"] == "succeeded"
    assert await stream.event() == DONE
    await stream.task


async def test_changes_that_come_fast_are_told_at_a_bounded_rate(client, worker, profile_file, follow):
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    await stream.event()
    began = time.monotonic()
    for step in range(1000):
        worker.progress({"epoch": 1, "epochs": 2, "step": step, "steps": 1000, "loss": 1.0})
        await asyncio.sleep(0)
    worker.ends(profile_file(1))
    events = [await stream.event()]
    while events[-1] != DONE:
        events.append(await stream.event())
    assert len(events) - 1 <= 1 + (time.monotonic() - began) / 0.2
    assert events[-2]["status"] == "succeeded"


@pytest.mark.parametrize("status", ["succeeded", "cancelled"])
async def test_a_stream_of_a_job_that_is_over_is_its_end(client, worker, profile_file, status):
    job = await tune(client)
    await worker.begins()
    if status == "cancelled":
        await client.post(f"/v1/jobs/{job['id']}/cancel")
    else:
        worker.ends(profile_file(1))
    done = await becomes(client, job, status)
    answer = await client.get(f"/v1/jobs/{job['id']}", headers=EVENTS)
    assert answer.content == b"data: " + orjson.dumps(done) + b"\n\n" + DONE


async def test_a_client_that_goes_away_ends_only_its_stream(client, worker, profile_file, follow, metric):
    job = await tune(client)
    await worker.begins()
    leaving, staying = follow(job), follow(job)
    await leaving.event()
    await staying.event()
    leaving.left.set()
    async with asyncio.timeout(10):
        await leaving.task
    assert metric('xpeft_requests_total{outcome="cancelled",route="/v1/jobs/{id}"}') == 1
    worker.ends(profile_file(1))
    assert (await staying.event())["status"] == "succeeded"
    assert worker.killed == []


async def test_a_long_silence_is_filled_with_comments(client, worker, profile_file, follow, monkeypatch):
    monkeypatch.setattr(event_stream, "_SILENT_SECONDS", 0.01)
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    await stream.event()
    async with asyncio.timeout(10):
        assert [await stream.parts.get() for _ in range(2)] == [b": still there\n\n"] * 2


async def test_a_follower_sees_that_the_job_is_cancelled(client, worker, follow):
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    await stream.event()
    await client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (await stream.event())["status"] == "cancelled"
    assert await stream.event() == DONE


async def test_a_follower_sees_that_the_server_stops(client, worker, follow, tuner):
    job = await tune(client)
    await worker.begins()
    stream = follow(job)
    await stream.event()
    await tuner.close()
    last = await stream.event()
    assert (last["status"], last["error"]["code"]) == ("failed", "interrupted")
    assert await stream.event() == DONE
    refused = await client.post(TUNE, json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        ("text/event-stream", True),
        ("text/event-stream, application/json;q=0.5", True),
        ("application/json, text/event-stream;q=0.5", False),
        ("*/*", False),
        ("application/json", False),
    ],
)
async def test_the_accept_header_decides_between_a_document_and_a_stream(client, worker, accept, streams):
    job = await tune(client)
    await client.post(f"/v1/jobs/{job['id']}/cancel")
    answer = await client.get(f"/v1/jobs/{job['id']}", headers={"accept": accept})
    assert answer.headers["content-type"] == ("text/event-stream" if streams else "application/json")
    assert answer.headers["vary"] == "accept"
    head = await client.head(f"/v1/jobs/{job['id']}", headers={"accept": accept})
    assert (head.status_code, head.content) == (200, b"")


async def test_a_list_is_newest_first_page_by_page(client, worker):
    jobs = [await tune(client, f"p{n}") for n in range(4)]
    await worker.begins()
    first = (await client.get("/v1/jobs?limit=3")).json()
    rest = (await client.get(f"/v1/jobs?limit=3&cursor={first['next_cursor']}")).json()
    assert first["object"] == "list"
    assert [job["id"] for job in first["data"] + rest["data"]] == [job["id"] for job in reversed(jobs)]
    assert rest["next_cursor"] is None
    assert rest["data"][0]["status"] == "running"


@pytest.mark.parametrize(
    ("query", "param"), [("limit=0", "limit"), ("limit=1001", "limit"), ("prefix=a", "prefix"), ("cursor=%3f", None)]
)
async def test_a_list_that_cannot_be_is_422(client, query, param):
    answer = await client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


@pytest.mark.parametrize("path", ["/v1/jobs/", "/v1/jobs/a/b", "/v1/jobs/a/cancel/b", "/v1/jobs//cancel"])
async def test_a_path_near_those_of_jobs_is_404(client, path):
    for method in ("GET", "POST"):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_jobs_are_counted_by_state_and_outcome(client, worker, profile_file, metric):
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


async def test_an_example_of_the_document_is_accepted(client):
    document = (await client.get("/openapi.json")).json()
    for example in document["components"]["schemas"]["TuneBody"]["examples"]:
        assert (await client.post(TUNE, json=example)).status_code == 202
    content = document["paths"]["/v1/jobs/{id}"]["get"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
