"""Tuning jobs on a real server with a real worker: to the end, and through every way to be killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xpeft_profiles import JobKey, open_store

LABELS = {"low": range(50), "high": range(50, 100)}
MINUTES = 180.0  # a worker loads a model, and ends, with what processor time others leave


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
    """A job that runs and would go on for long; its worker may still be loading its model."""
    job = tune(server, "endless", epochs=1000, batch_rows=1)
    wait_for(server, job, "running")
    return job


def wait_for_steps(server: Any, job: dict[str, Any]) -> None:
    deadline = time.monotonic() + MINUTES
    while (found := job_of(server, job))["progress"] is None:
        assert found["status"] == "running", found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + MINUTES
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/profiles.db"


@pytest.fixture(scope="module")
def kept(server_starter: Any, lasting: Any, store: str) -> Iterator[Any]:
    """Over one store, with a setting from a variable; whoever kills it leaves the next test a new one."""
    kept = lasting(lambda: server_starter(store, environ={"XPEFT_MAX_INPUTS": "99"}))
    yield kept
    kept.close()


@pytest.fixture
def server(kept: Any) -> Iterator[Any]:
    """Without jobs, before and after; where the last one was not ended, its worker waits for more."""
    server = kept.server()
    yield server
    if server.process.poll() is None:
        for job in server.client.get("/v1/jobs").json()["data"]:
            if job["status"] in ("queued", "running"):
                server.client.post(f"/v1/jobs/{job['id']}/cancel")


def test_a_job_is_followed_to_its_end_and_its_profile_answers_at_once(server: Any) -> None:
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


def test_what_a_job_learned_to_write_is_written_at_once(server_of: Any, tiny_llama: Path) -> None:
    """A prompt's first word decides what follows, which the bare model knows nothing of."""
    rows = [{"prompt": f"w{row % 2} w{50 + row % 7}", "completion": f"w{10 + row % 2}"} for row in range(40)]
    server = server_of("--plm", str(tiny_llama), "--bank", "random:N=64,R=16,seed=1,std=0.5", "--store", "memory://")
    try:
        server.wait_until_ready()
        settings = {"epochs": 40, "lr_norm": 0.3, "held_out": 0}
        answer = server.client.post("/v1/profiles/author/tune", json={"examples": rows, "settings": settings})
        assert answer.status_code == 202, answer.text
        done = wait_for(server, answer.json(), "succeeded")
        assert (done["result"]["accuracy"], done["result"]["rows"]) == (None, {"train": 40, "held_out": 0})
        written = {"author": 0, "base": 0}
        for profile in written:
            for row in rows[:28]:
                asked = {"profile": profile, "prompt": row["prompt"], "max_new_tokens": 1}
                text = server.client.post("/v1/generate", json=asked).json()["text"]
                written[profile] += text.strip() == row["completion"]
        assert written["author"] >= 10, written  # by chance it would be one in a hundred
        assert written["base"] <= 3, written
    finally:
        assert server.stop() == 0


def test_a_worker_has_no_secrets_and_only_runs_on_idle_processors(server: Any) -> None:
    wait_for(server, tune(server, epochs=1), "succeeded")
    worker = server.worker()
    assert os.sched_getscheduler(worker) == os.SCHED_IDLE
    assert server.client.get("/info").json()["limits"]["max_inputs"] == 99
    assert b"XPEFT_" not in Path(f"/proc/{worker}/environ").read_bytes()
    for told in ("profiles.db", "sqlite"):
        assert told.encode() not in Path(f"/proc/{worker}/cmdline").read_bytes()


def test_a_cancelled_job_ends_its_worker_at_once_and_serving_goes_on(server: Any) -> None:
    job = begin_endless(server)
    wait_for_steps(server, job)
    worker = server.worker()
    answer = server.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    wait_until_gone(worker)
    server.put("p", server.profile(1))
    assert server.classify("p").status_code == 200
    assert server.client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200


def test_a_job_whose_worker_was_killed_fails_and_the_next_gets_a_new_one(server: Any) -> None:
    running, queued = begin_endless(server), tune(server, "next", epochs=2)
    worker = server.worker()
    os.kill(worker, signal.SIGKILL)
    failed = wait_for(server, running, "failed")
    assert failed["error"]["code"] == "worker_died"
    assert "signal 9" in failed["error"]["message"]
    wait_for(server, queued, "succeeded")
    assert server.worker() != worker
    assert server.classify("next").status_code == 200


def test_a_job_of_a_server_that_was_killed_is_interrupted_as_soon_as_it_starts_again(server: Any, kept: Any) -> None:
    running, queued = begin_endless(server), tune(server)
    wait_for_steps(server, running)
    worker = server.worker()
    server.kill()
    wait_until_gone(worker)
    again = kept.server()
    for job in (running, queued):
        found = job_of(again, job)
        assert (found["status"], found["error"]["code"]) == ("failed", "interrupted")
    listed = again.client.get("/v1/jobs").json()["data"]
    assert [job["id"] for job in listed[:2]] == [queued["id"], running["id"]]
    assert again.classify("endless").status_code == 404


def test_a_server_that_is_told_to_stop_interrupts_its_jobs_and_ends_with_0(server: Any, store: str) -> None:
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
    # A server that started now would interrupt them itself: this one has said so before it ended.
    records = asyncio.run(records_of(store, running, queued))
    assert [(record.status, record.error["code"]) for record in records] == [("failed", "interrupted")] * 2


async def records_of(store: str, *jobs: dict[str, Any]) -> list[Any]:
    """As they stand in the store, which no server has open."""
    opened = open_store(store)
    await opened.open()
    found = [await opened.jobs.get(JobKey("default", job["id"])) for job in jobs]
    await opened.close()
    return [stored.record for stored in found if stored is not None]
