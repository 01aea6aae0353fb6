from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import transformers
from packaging.version import Version

from xpeft_benchmarks.generate import crew as generate_crew
from xpeft_benchmarks.generate.crew import Crew
from xpeft_benchmarks.generate.measurement import run_generate
from xpeft_benchmarks.generate.results import GenerateSample, Variant, missing, results_of
from xpeft_benchmarks.generate.work import GeneratePlan, draw_work
from xpeft_benchmarks.processes.workers import WorkerFailed
from xpeft_benchmarks.results import Result

TEXTS = [" ".join(f"w{(start + word) % 100}" for word in range(1 + start % 9)) for start in range(40)]
CONTINUOUS = "transformers continuous"
NEEDS_PSUTIL = find_spec("psutil") is None and Version(transformers.__version__) < Version("5.23")
"""Older releases of transformers know a CPU's memory by it alone, and it is none of our packages."""
NAMES = [
    "engine 3 profiles",
    "engine one profile",
    "engine bare PLM",
    "transformers padded 4",
    CONTINUOUS,
    "staggered engine 3 profiles",
    "staggered engine one profile",
    "staggered transformers padded 4",
]


def plan(plm: Path, **changes: object) -> GeneratePlan:
    values: dict[str, object] = {
        "plm": str(plm),
        "bank": "random:N=8,R=4,seed=0",
        "device": "cpu",
        "dtype": "float32",
        "requests": 7,
        "profiles": 3,
        "rounds": 2,
        "max_batch_tokens": 64,
        "batch": 4,
        "prompt": (3, 9),
        "new": 6,
        "mixed_new": (2, 12),
    }
    return GeneratePlan(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(endless: Path) -> tuple[dict[str, Result], list[str]]:
    steps: list[str] = []
    results = run_generate(plan(endless), TEXTS, on_step=steps.append)
    return {result.variant: result for result in results}, steps


def test_engine_and_transformers_are_measured_in_one_run(run: tuple[dict[str, Result], list[str]]) -> None:
    results, steps = run
    refused = [step for step in steps if f"{CONTINUOUS} DOES NOT RUN HERE" in step]
    assert not refused or NEEDS_PSUTIL
    names = [name for name in NAMES if name != CONTINUOUS or not refused]
    assert [name for name in results if "DOES NOT RUN" not in name] == names
    results = {name: results[name] for name in names}
    assert all(len(result.speeds) == 2 and result.per_second > 0 for result in results.values())
    assert {result.unit for result in results.values()} == {"tokens"}
    assert {name: [each.to for each in result.ratios] for name, result in results.items() if result.ratios} == {
        NAMES[0]: [NAMES[3], *([] if refused else [CONTINUOUS]), NAMES[1], NAMES[2]],
        NAMES[5]: [NAMES[7], NAMES[6]],
    }
    assert steps[-2:] == ["round 1 of 2", "round 2 of 2"]


def test_staggered_requests_tell_latencies_and_within_what_time_they_came(
    run: tuple[dict[str, Result], list[str]],
) -> None:
    results = {name: result for name, result in run[0].items() if "DOES NOT RUN" not in name}
    arriving = {name: result.details.get("arriving_s") for name, result in results.items()}
    assert {name for name, seconds in arriving.items() if seconds} == set(NAMES[5:])
    assert len(set(arriving.values()) - {None}) == 1
    for result in results.values():
        details = result.details
        assert 0 < details["first_token_p50_ms"] <= details["first_token_p95_ms"]
        assert details["first_token_p50_ms"] < details["total_p50_ms"] <= details["total_p95_ms"]
    assert results[NAMES[3]].details["mean_batch"] == 3.5
    assert 1 <= results[NAMES[7]].details["mean_batch"] <= 4


class FakeWorker:
    """Answers at speeds that are known; ``refuses`` are jobs that it fails at."""

    refuses: ClassVar[set[str]] = set()
    asked: ClassVar[list[dict[str, Any]]] = []
    seconds: ClassVar[dict[str, float]] = {"run": 1.0, "padded": 2.0, "continuous": 4.0}

    def __init__(self, module: str) -> None:
        self.module = module

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass

    def ask(self, **job: Any) -> dict[str, Any]:
        self.asked.append({"module": self.module, **job})
        if job["job"] in self.refuses:
            raise WorkerFailed(f"{job['job']} is broken")
        if job["job"] == "open":
            return {"folder": "f", "prompts": [[1]]} if "texts" in job else {}
        seconds = self.seconds[job["job"]]
        return {"seconds": seconds, "first_token": [0.1], "total": [seconds]}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(FakeWorker, "refuses", set())
    monkeypatch.setattr(FakeWorker, "asked", [])
    monkeypatch.setattr(generate_crew, "Worker", FakeWorker)
    return FakeWorker


def test_staggered_requests_come_within_half_of_the_time_that_padded_batches_need(fake: type[FakeWorker]) -> None:
    wanted = plan(Path("p"), requests=10, new=5)
    run_generate(wanted, TEXTS, on_step=_ignore)
    mixed = draw_work(wanted, np.random.default_rng(0)).mixed_new
    staggered = [job["at"] for job in fake.asked if job.get("new") == mixed]
    padded_tokens_a_second = 10 * 5 / 2.0
    assert {at[0] for at in staggered} == {0.0}
    assert staggered[0][-1] == pytest.approx(0.5 * sum(mixed) / padded_tokens_a_second)
    assert all(at == staggered[0] for at in staggered)


def test_both_sides_are_asked_for_the_same(fake: type[FakeWorker]) -> None:
    run_generate(plan(Path("p")), TEXTS, on_step=_ignore)
    for name in ("new", "at"):
        asked = [{tuple(job[name]) for job in fake.asked if job["job"] == kind} for kind in ("run", "padded")]
        assert asked[0] == asked[1]


def test_who_is_there_at_once_is_put_into_padded_batches_by_length_and_else_in_turn(fake: type[FakeWorker]) -> None:
    wanted = plan(Path("p"))
    run_generate(wanted, TEXTS, on_step=_ignore)
    lengths = draw_work(wanted, np.random.default_rng(0)).prompt
    padded = [job for job in fake.asked if job["job"] == "padded"]
    for job in padded:
        at_once = max(job["at"]) == 0
        assert [lengths[each] for each in job["order"]] == (sorted(lengths) if at_once else lengths)
    assert len({max(job["at"]) == 0 for job in padded}) == 2


def test_continuous_batching_that_does_not_run_is_said_in_steps_and_results(fake: type[FakeWorker]) -> None:
    fake.refuses = {"continuous"}
    steps: list[str] = []
    results = run_generate(plan(Path("p")), TEXTS, on_step=steps.append)
    assert "transformers continuous DOES NOT RUN HERE: continuous is broken" in steps
    assert [result.variant for result in results if "continuous" in result.variant] == [
        "transformers continuous DOES NOT RUN HERE"
    ]
    assert results[-1].per_second == 0
    assert results[-1].details == {"failed": "continuous is broken"}
    assert "transformers continuous" not in [each.to for each in results[0].ratios]


def test_continuous_batching_is_left_out_where_nobody_wants_it(fake: type[FakeWorker]) -> None:
    results = run_generate(plan(Path("p"), continuous=False), TEXTS, on_step=_ignore)
    assert not [result for result in results if "continuous" in result.variant]
    assert "continuous" not in {job["job"] for job in fake.asked}


def test_a_padded_side_that_fails_ends_the_run(fake: type[FakeWorker]) -> None:
    fake.refuses = {"padded"}
    with pytest.raises(WorkerFailed, match="padded is broken"):
        run_generate(plan(Path("p")), TEXTS, on_step=_ignore)


@pytest.mark.parametrize(
    ("model", "says"), [("tiny_bert", "no language-model head"), ("tiny_llama", "takes 64 tokens")]
)
def test_a_model_that_cannot_do_it_is_told_by_name(
    model: str, says: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, worker_here: type
) -> None:
    monkeypatch.setattr(generate_crew, "Worker", worker_here)
    folder = request.getfixturevalue(model)
    wanted = plan(folder, mixed_new=(60, 60))
    with ExitStack() as stack, pytest.raises(WorkerFailed, match=says):
        Crew(wanted, draw_work(wanted, np.random.default_rng(0)), TEXTS, stack, on_step=_ignore)


def test_requests_are_drawn_within_their_limits_and_are_the_same_for_a_seed() -> None:
    wanted = plan(Path("p"), requests=500)
    work = draw_work(wanted, np.random.default_rng(3))
    assert (min(work.prompt), max(work.prompt)) == (3, 9)
    assert (min(work.mixed_new), max(work.mixed_new)) == (2, 12)
    assert work.owners[:4] == [0, 1, 2, 0]
    assert (work.arrivals[0], work.arrivals[-1]) == (0.0, 1.0)
    assert all(one <= other for one, other in pairwise(work.arrivals))
    assert work.longest == 9 + 12
    assert work == draw_work(wanted, np.random.default_rng(3))
    assert work != draw_work(wanted, np.random.default_rng(4))


def test_a_single_request_comes_at_once() -> None:
    work = draw_work(plan(Path("p"), requests=1), np.random.default_rng(0))
    assert work.staggered(5.0).at == [0.0]


def test_results_have_ratios_round_by_round_and_latencies_over_all_rounds() -> None:
    def sample(seconds: float, batches: int = 0) -> GenerateSample:
        return GenerateSample(60, seconds, [0.1 * seconds, 0.3 * seconds], [seconds, seconds], batches)

    variants = {
        "ours": Variant("", lambda: sample(1), ("theirs", "not measured"), 0.75),
        "theirs": Variant("", lambda: sample(2)),
    }
    ours, theirs = results_of(
        variants, {"ours": [sample(1), sample(1), sample(3)], "theirs": [sample(2, 1), sample(4, 1), sample(3, 2)]}
    )
    assert [(each.to, each.median) for each in ours.ratios] == [("theirs", 2.0)]
    assert ours.per_second == 60
    assert ours.details["first_token_p50_ms"] == 300
    assert ours.details["total_p95_ms"] == 3000
    assert ours.details["arriving_s"] == 0.75
    assert "mean_batch" not in ours.details
    assert theirs.details["mean_batch"] == 1.67


def test_what_does_not_run_is_a_result_of_nothing_with_its_reason() -> None:
    result = missing("that", "it broke", 3)
    assert (result.per_second, list(result.speeds)) == (0.0, [0.0] * 3)
    assert "it broke" in result.meaning


def _ignore(step: str) -> None:
    del step
