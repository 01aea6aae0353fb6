from __future__ import annotations

from pathlib import Path

import pytest

from xpeft_benchmarks.popularity import Popularity
from xpeft_benchmarks.processes.server_client import ServerRefused
from xpeft_benchmarks.processes.server_process import ServerFailed, ServerProcess, free_port
from xpeft_benchmarks.processes.workers import Worker, WorkerFailed
from xpeft_benchmarks.processes.xpeft_target import started
from xpeft_benchmarks.results import Result
from xpeft_benchmarks.serve import measurement as serve
from xpeft_benchmarks.serve.measurement import ServePlan, run_serve
from xpeft_benchmarks.serve.results import results_of
from xpeft_benchmarks.stretches import Sample

BANK = "random:N=8,R=4,seed=0"
TEXTS = [" ".join(f"w{(start + word) % 100}" for word in range(1 + start % 9)) for start in range(40)]


def plan(plm: Path, **changes: object) -> ServePlan:
    values: dict[str, object] = {
        "plm": str(plm),
        "bank": BANK,
        "device": "cpu",
        "dtype": "float32",
        "profiles": 5,
        "tenants": 3,
        "popularity": Popularity.parse("distinct"),
        "concurrencies": (4, 1),
        "seconds": 0.5,
        "requests": 20,
        "rounds": 2,
        "texts": 20,
    }
    return ServePlan(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def results(tiny_bert: Path) -> dict[str, Result]:
    return {
        result.variant: result for result in run_serve(plan(tiny_bert), TEXTS, graph_tokens=0, on_step=lambda _: None)
    }


def test_server_and_engine_are_measured_beside_one_another(results: dict[str, Result]) -> None:
    assert list(results) == ["http c=4", "http c=1", "engine batch=4", "engine batch=1"]
    assert [each.to for each in results["http c=4"].ratios] == ["engine batch=4"]
    assert [each.to for each in results["http c=1"].ratios] == ["engine batch=1"]
    assert all(len(result.speeds) == 2 and result.per_second > 0 for result in results.values())


def test_a_server_tells_latency_batches_and_what_it_has_used(results: dict[str, Result]) -> None:
    details = results["http c=4"].details
    assert 0 < details["p50_ms"] <= details["p90_ms"] <= details["p99_ms"]
    assert 1 <= details["mean_batch"] <= 4
    assert details["mean_inference_ms"] > 0
    assert details["mean_queue_ms"] >= 0
    assert details["mean_client_cpu_ms"] > 0
    assert details["mean_server_cpu_ms"] > 0
    assert details["peak_rss_mb"] >= details["rss_mb"] > 50
    assert details["resident_profiles"] == 5
    assert details["start_seconds"] > 0


def test_one_request_at_a_time_is_compared_with_the_forward_alone(results: dict[str, Result]) -> None:
    assert "p50_over_forward_ms" in results["http c=1"].details
    assert "p50_over_forward_ms" not in results["http c=4"].details


class OtherBank:
    """A worker of the engine whose bank is not the server's."""

    def __init__(self, module: str) -> None:
        del module

    def __enter__(self) -> OtherBank:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, **job: object) -> dict[str, object]:
        assert job["job"] == "open"
        return {"bank": "sha256:" + "00" * 32}


@pytest.mark.usefixtures("warm_children")
def test_a_server_that_runs_already_is_measured_as_one_tenant(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"--plm": str(tiny_bert), "--bank": BANK, "--device": "cpu", "--dtype": "float32"}
    with started(options, store="memory://", tenants=1) as target:
        url = f"http://{target.client.host}:{target.client.port}"
        asked = plan(tiny_bert, url=url, api_key=target.keys[0], concurrencies=(2,), rounds=1)
        found = run_serve(asked, TEXTS, graph_tokens=0, on_step=lambda _: None)
        monkeypatch.setattr(serve, "Worker", OtherBank)
        with pytest.raises(ServerRefused, match=r"bank is sha256:.* measured beside it has sha256:0000"):
            run_serve(asked, TEXTS, graph_tokens=0, on_step=_ignore)
    assert [result.variant for result in found] == ["http c=2", "engine batch=2"]
    assert "peak_rss_mb" not in found[0].details
    assert asked.settings()["url"] == url
    assert "api_key" not in asked.settings()


@pytest.mark.usefixtures("warm_children")
def test_a_server_that_cannot_start_is_told_in_its_own_words(tiny_bert: Path) -> None:
    options = {"--plm": str(tiny_bert), "--bank": "random:N=x"}
    with pytest.raises(ServerFailed, match="N is 'x'"), started(options, store="memory://", tenants=1):
        pass


def test_a_server_process_that_ends_at_once_is_a_failure() -> None:
    process = ServerProcess(["false"], port=free_port(), ready="/", environment={})
    with pytest.raises(ServerFailed, match="exit code 1"), process:
        pass


def test_a_worker_that_is_told_nonsense_answers_with_what_was_wrong(tmp_path: Path, worker_here: type) -> None:
    with worker_here("xpeft_benchmarks.engine.worker") as worker, pytest.raises(WorkerFailed, match="plm"):
        worker.ask(
            job="open",
            plm=str(tmp_path),
            bank=BANK,
            device="cpu",
            dtype="float32",
            profiles=1,
            seed=0,
            graph_tokens=0,
            texts=[],
            owners=[],
        )


def test_a_worker_that_fails_at_a_job_says_why_and_takes_the_next() -> None:
    nowhere = {"target": "x", "host": "127.0.0.1", "port": free_port()}
    with Worker("xpeft_benchmarks.serve.load_client") as worker:
        worker.ask(job="load", requests=["GET / HTTP/1.1\r\n\r\n"], **nowhere)
        with pytest.raises(WorkerFailed, match=r"refused|Connect call failed"):
            worker.ask(job="drive", target="x", concurrency=1, seconds=0.1, requests=1)
        assert worker.ask(job="load", requests=[], **nowhere) == {"loaded": 0}


def test_http_is_compared_with_infinity_at_the_same_concurrency() -> None:
    class Fixed:
        concurrency = 8
        meaning = "fixed"

        def run(self, seconds: float, requests: int | None) -> Sample:
            raise AssertionError

    samples = {
        "http c=8": [Sample(90, 1.0, [0.1], {"queue_seconds": 0.9, "batches": 10, "batch_texts": 90})],
        "engine batch=8": [Sample(100, 1.0, [0.08], {})],
        "infinity c=8": [Sample(45, 1.0, [0.2], {})],
    }
    http, engine, infinity = results_of(dict.fromkeys(samples, Fixed()), samples, facts={"http": {"peak_rss_mb": 1}})
    assert [(each.to, each.median) for each in http.ratios] == [("engine batch=8", 0.9), ("infinity c=8", 2.0)]
    assert [(each.to, each.median) for each in infinity.ratios] == [("engine batch=8", 0.45)]
    assert engine.ratios == []
    assert http.details["mean_queue_ms"] == 10.0
    assert http.details["mean_batch"] == 9.0
    assert http.details["peak_rss_mb"] == 1


def _ignore(step: str) -> None:
    del step
