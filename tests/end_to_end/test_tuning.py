"""Tuning jobs on a real server with a real worker: to the end, and through every way to be killed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

LABELS = {"low": range(50), "high": range(50, 100)}
MINUTES = 180.0  # a worker loads a model with what processor time others leave


def examples(rows: int = 40) -> list[dict[str, str]]:
    """A label's own words decide it."""
    rng = random.Random(0)
    labels = [list(LABELS)[row % 2] for row in range(rows)]
    splits = ["test" if row >= rows - 10 else "train" for row in range(rows)]
    texts = [" ".join(f"w{rng.choice(LABELS[label])}" for _ in range(8)) for label in labels]
    return [
        {"text": text, "label": label, "split": split} for text, label, split in zip(texts, labels, splits, strict=True)
    ]


def tune(server: Any, name: str = "desk", **settings: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/profiles/{name}/tune", json={"examples": examples(), "settings": settings})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def job_of(server: Any, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = server.client.get(f"/v1/jobs/{job['id']}").json()
    return found


def wait_for(server: Any, job: dict[str, Any], status: str) -> dict[str, Any]:
    deadline = time.monotonic() + MINUTES
    while (found := job_of(server, job))["status"] != status:
        assert found["status"] in ("queued", "running"), found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def begin_endless(server: Any) -> dict[str, Any]:
    """A job that has done its first steps and would go on for long."""
    job = tune(server, "endless", epochs=1000, batch_rows=1)
    deadline = time.monotonic() + MINUTES
    while (found := job_of(server, job))["progress"] is None:
        assert found["status"] in ("queued", "running"), found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    assert found["status"] == "running"
    return job


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/profiles.db"


def test_a_job_is_followed_to_its_end_and_its_profile_answers_at_once(start_server: Any, store: str) -> None:
    server = start_server(store)
    server.wait_until_ready()
    job = tune(server, epochs=10)
    events = []
    headers = {"accept": "text/event-stream"}
    with server.client.stream("GET", f"/v1/jobs/{job['id']}", headers=headers, timeout=MINUTES) as stream:
        events += [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    states = [json.loads(event) for event in events]
    done = states[-1]
    assert done["status"] == "succeeded", done
    assert {state["status"] for state in states[:-1]} == {"running"} | {states[0]["status"]}
    assert done["result"]["rows"] == {"train": 30, "held_out": 10}
    test = [row for row in examples() if row["split"] == "test"]
    answer = server.classify("desk", [row["text"] for row in test]).json()
    hits = [each["label"] == row["label"] for each, row in zip(answer["data"], test, strict=True)]
    assert sum(hits) / 10 == done["result"]["accuracy"]["held_out"] > 0.5
    assert answer["profile_version"] == done["result"]["profile_version"]
    assert job_of(server, job) == done
    assert server.stop() == 0


def test_a_worker_has_no_secrets_and_only_runs_on_idle_processors(
    start_server: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XPEFT_DRAIN_SECONDS", "9")
    server = start_server(store)
    server.wait_until_ready()
    wait_for(server, tune(server), "running")
    worker = server.worker()
    deadline = time.monotonic() + MINUTES
    while os.sched_getscheduler(worker) != os.SCHED_IDLE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert b"XPEFT_DRAIN_SECONDS" in Path(f"/proc/{server.process.pid}/environ").read_bytes()
    assert b"XPEFT_" not in Path(f"/proc/{worker}/environ").read_bytes()
    for told in ("profiles.db", "sqlite"):
        assert told.encode() not in Path(f"/proc/{worker}/cmdline").read_bytes()


def test_a_job_of_a_server_that_was_killed_is_interrupted_as_soon_as_it_starts_again(
    start_server: Any, store: str
) -> None:
    server = start_server(store)
    server.wait_until_ready()
    running, queued = begin_endless(server), tune(server)
    worker = server.worker()
    server.kill()
    wait_until_gone(worker)
    again = start_server(store)
    again.wait_until_ready()
    for job in (running, queued):
        found = job_of(again, job)
        assert (found["status"], found["error"]["code"]) == ("failed", "interrupted")
    listed = again.client.get("/v1/jobs").json()["data"]
    assert [job["id"] for job in listed] == [queued["id"], running["id"]]
    assert again.classify("endless").status_code == 404


def test_a_job_whose_worker_was_killed_fails_and_the_next_gets_a_new_one(start_server: Any, store: str) -> None:
    server = start_server(store)
    server.wait_until_ready()
    running, queued = begin_endless(server), tune(server, epochs=2)
    worker = server.worker()
    os.kill(worker, signal.SIGKILL)
    failed = wait_for(server, running, "failed")
    assert failed["error"]["code"] == "worker_died"
    assert "signal 9" in failed["error"]["message"]
    wait_for(server, queued, "succeeded")
    assert server.worker() != worker
    assert server.classify("desk").status_code == 200


def test_a_cancelled_job_ends_its_worker_at_once_and_serving_goes_on(start_server: Any, store: str) -> None:
    server = start_server(store)
    server.wait_until_ready()
    job = begin_endless(server)
    worker = server.worker()
    answer = server.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    wait_until_gone(worker)
    server.put("p", server.profile(1))
    assert server.classify("p").status_code == 200
    assert server.client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200


def test_a_server_that_is_told_to_stop_interrupts_its_jobs_and_ends_with_0(start_server: Any, store: str) -> None:
    server = start_server(store)
    server.wait_until_ready()
    running, queued = begin_endless(server), tune(server)
    worker = server.worker()
    began = time.monotonic()
    with server.client.stream("GET", f"/v1/jobs/{running['id']}", headers={"accept": "text/event-stream"}) as stream:
        lines = stream.iter_lines()
        assert '"running"' in next(lines)
        server.process.terminate()
        told = [line for line in lines if line]
    assert told[-1] == "data: [DONE]"
    assert json.loads(told[-2].removeprefix("data: "))["error"]["code"] == "interrupted"
    assert server.end() == 0
    assert time.monotonic() - began < 10
    wait_until_gone(worker)
    again = start_server(store)
    again.wait_until_ready()
    for job in (running, queued):
        assert job_of(again, job)["error"]["code"] == "interrupted"


def test_every_replica_knows_a_job_and_can_cancel_it(start_server: Any, own_redis: Any) -> None:
    one, two = start_server(own_redis.url), start_server(own_redis.url)
    one.wait_until_ready()
    two.wait_until_ready()
    job = begin_endless(one)
    worker = one.worker()
    found = job_of(two, job)
    assert found["status"] in ("queued", "running")
    assert two.client.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    wait_until_gone(worker)
    assert job_of(one, job)["status"] == "cancelled"
