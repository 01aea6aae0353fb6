"""Two real servers on one Redis, and nothing fails: what one of them did or has begun is the other's, too."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

MINUTES = 180.0  # a worker loads, and ends, with what processor time others leave
ROUNDS = 200 if os.environ.get("NIGHTLY") == "1" else 100
EXAMPLES = [{"text": f"w{row % 2 * 50 + row}", "label": ("low", "high")[row % 2]} for row in range(40)]


def test_two_replicas_never_serve_a_version_older_than_an_acknowledged_one(redis_pair: Any) -> None:
    for number in range(ROUNDS):
        servers = (redis_pair.near, redis_pair.far)
        writer, reader = servers if number % 2 else servers[::-1]
        version = writer.put("turns", writer.profile(number)).json()["version"]
        assert reader.classify("turns").json()["profile_version"] == version
        assert writer.classify("turns").json()["profile_version"] == version
    redis_pair.near.client.delete("/v1/profiles/turns")
    assert redis_pair.far.classify("turns").status_code == 404


def test_every_replica_knows_a_job_and_can_cancel_it(redis_pair: Any) -> None:
    near, far = redis_pair.near, redis_pair.far
    body = {"examples": EXAMPLES, "settings": {"epochs": 1000, "batch_rows": 1}}
    job = f"/v1/jobs/{near.client.post('/v1/profiles/endless/tune', json=body).json()['id']}"
    deadline = time.monotonic() + MINUTES
    while near.client.get(job).json()["status"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = near.worker()
    assert far.client.get(job).json()["status"] in ("queued", "running")
    assert far.client.post(f"{job}/cancel").json()["status"] == "cancelled"
    deadline = time.monotonic() + MINUTES
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, f"process {worker} goes on"
        time.sleep(0.01)
    assert near.client.get(job).json()["status"] == "cancelled"
