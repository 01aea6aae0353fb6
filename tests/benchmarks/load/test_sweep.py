"""`xpeft bench load` against one real server, which answers and writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from xpeft_benchmarks.load import sweep as load
from xpeft_benchmarks.load.plan import Kind, LoadPlan, RatesInvalid, TargetPlan
from xpeft_benchmarks.load.slo import Slo
from xpeft_benchmarks.load.sweep import BenchExtraMissing, Sweep, rates_up_to, run_load
from xpeft_benchmarks.load.work import draw_load
from xpeft_benchmarks.popularity import Popularity
from xpeft_benchmarks.processes.server_client import ServerRefused
from xpeft_benchmarks.processes.xpeft_target import XpeftTarget, started
from xpeft_benchmarks.stretches import RequestsFailed

BANK = "random:N=8,R=4,seed=0"
TEXTS = [" ".join(f"w{(start + word) % 100}" for word in range(1 + start % 9)) for start in range(40)]


@pytest.fixture(scope="module")
def server(tiny_llama: Path, warm_programs: Path) -> Iterator[XpeftTarget]:
    options = {"--plm": str(tiny_llama), "--bank": BANK, "--device": "cpu", "--dtype": "float32"}
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(warm_programs / "python"))
            target = stack.enter_context(started(options, store="memory://", tenants=1))
        yield target


@pytest.fixture
def plan(server: XpeftTarget, tiny_llama: Path) -> LoadPlan:
    """Of two targets that are one server: there is no cheaper one."""
    url, key = server.client.url, server.keys[0]
    return LoadPlan(
        targets=(TargetPlan("one", url, key), TargetPlan("two", url, key)),
        kind=Kind.CLASSIFY,
        rates=(80.0, 100.0),
        seconds=0.3,
        rounds=2,
        profiles=5,
        popularity=Popularity.parse("zipf:1.1"),
        texts=20,
        slo=Slo(60.0),
        server={},
        tenants=1,
        plm=str(tiny_llama),
    )


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


def run(plan: LoadPlan, steps: list[str]) -> Sweep:
    return run_load(plan, TEXTS, on_step=steps.append)


def test_two_targets_take_turns_and_get_the_same_requests(plan: LoadPlan, steps: list[str]) -> None:
    sweep = run(plan, steps)
    assert [(point.target, point.rate) for point in sweep.points] == [
        (name, rate) for rate in (80.0, 100.0) for name in ("one", "two")
    ]
    for point in sweep.points:
        assert [len(stretch.exchanges) for stretch in point.rounds] == [round(point.rate * plan.seconds)] * 2
        assert {each.status for each in point.exchanges()} == {200}
        assert {"queue", "inference", "server", "rest", "total"} <= set(point.stages())
        assert all(stretch.client_cpu > 0 for stretch in point.rounds)
    for one, two in zip(sweep.points[::2], sweep.points[1::2], strict=True):
        for mine, theirs in zip(one.rounds, two.rounds, strict=True):
            assert sorted(each.tokens for each in mine.exchanges) == sorted(each.tokens for each in theirs.exchanges)
    turns = [step.split(":")[1].split(",") for step in steps if step.startswith("round 1")]
    assert sorted(name.strip() for name, *_ in turns[:2]) == ["one", "two"]
    assert turns[0][1].split()[0] == turns[1][1].split()[0]
    assert sweep.facts["one"]["plm"] == Path(plan.plm).name


def test_text_is_written_as_long_as_the_lengths_say_and_timed_by_its_tokens(
    plan: LoadPlan, tmp_path: Path, steps: list[str]
) -> None:
    (tmp_path / "lengths.csv").write_text("tokens,new_tokens\n7,3\n9,4\n")
    one = replace(plan, targets=plan.targets[:1], kind=Kind.GENERATE, lengths=tmp_path / "lengths.csv", rounds=1)
    for point in run(one, steps).points:
        assert {each.tokens for each in point.exchanges()} == {7, 9}
        for each in point.exchanges():
            assert each.stages["first_token"] <= each.stages["total"]
    assert "one: texts of 7 to 9 tokens, as the server counts them" in steps


def test_rates_that_nobody_gave_come_from_what_the_targets_can_do(
    plan: LoadPlan, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_FEWEST", 0)  # however slow the machine is
    sweep = run(replace(plan, targets=plan.targets[:1], rates=None, rounds=1, seconds=0.2), steps)
    rates = [point.rate for point in sweep.points]
    assert rates == list(rates_up_to(sweep.capacities["one"], sweep.capacities["one"]))
    assert sweep.capacities["one"] > 0


def test_nine_rates_reach_from_well_within_the_slowest_to_beyond_the_fastest() -> None:
    assert rates_up_to(100.0, 100.0) == (30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 110.0)
    assert (min(rates_up_to(100.0, 200.0)), max(rates_up_to(100.0, 200.0))) == (30.0, 220.0)


def test_a_server_that_refuses_the_requests_is_not_measured(plan: LoadPlan, steps: list[str]) -> None:
    url, key = plan.targets[0].url, plan.targets[0].key
    long = replace(plan, targets=(TargetPlan("one", url, key),), kind=Kind.GENERATE)
    with pytest.raises(RequestsFailed, match=r"one: 0 of .* were answered with 200: 422"):
        run_load(long, [" ".join(["w1"] * 100)], on_step=steps.append)


def test_a_key_that_the_server_does_not_know_is_told_before_anything_is_measured(
    plan: LoadPlan, steps: list[str]
) -> None:
    stranger = replace(plan, targets=(TargetPlan("one", plan.targets[0].url, "xp_nobody"),))
    with pytest.raises(ServerRefused, match="GET /info: 401"):
        run(stranger, steps)


def test_too_few_requests_to_tell_quantiles_are_refused_before_anything_starts(plan: LoadPlan) -> None:
    with pytest.raises(RatesInvalid, match=r"rate 80 for 0.2 seconds is 16 requests, .* at least 20"):
        run_load(replace(plan, seconds=0.2), TEXTS, on_step=lambda step: pytest.fail(step))


def test_without_aiohttp_it_says_what_to_install(plan: LoadPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "find_spec", lambda name: None if name == "aiohttp" else name)
    with pytest.raises(BenchExtraMissing, match="aiohttp is not installed"):
        run_load(plan, TEXTS, on_step=lambda step: pytest.fail(step))


def test_the_client_needs_no_torch() -> None:
    """Nor the time that it takes to load."""
    program = (
        "import sys\nsys.modules['torch'] = None\nimport xpeft_benchmarks.load.failures, xpeft_benchmarks.load.results"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_seed_draws_the_same_work_and_another_one_does_not(plan: LoadPlan) -> None:
    assert draw_load(plan, TEXTS) == draw_load(plan, TEXTS)
    assert draw_load(plan, TEXTS).texts != draw_load(replace(plan, seed=1), TEXTS).texts
