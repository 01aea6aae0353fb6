"""Several processes' metrics on one page."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from xpeft_server.engine.errors import Unavailable
from xpeft_server.engine.metrics import Metrics
from xpeft_server.remote.summed_metrics import ConnectedMetrics, EndedProcesses, MetricsReport, summed

# One of each process's, not their sum.
CHOSEN: dict[str, Callable[[list[float]], float]] = {
    "xpeft_build_info": max,
    "xpeft_kernel_info": max,
    "xpeft_store_up": min,
    "process_max_fds": min,
    "process_open_fds": max,
    "process_start_time_seconds": min,
}


def key(sample: Sample) -> str:
    return f"{sample.name}{sorted(sample.labels.items())}"


def series(page: bytes) -> dict[str, float]:
    return {
        key(sample): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def described(page: bytes) -> list[str]:
    return [line for line in page.decode().splitlines() if line.startswith("#")]


def seen(*processes: Metrics | EndedProcesses) -> dict[str, float]:
    return series(summed(each.families() for each in processes))


def unpickled(told: MetricsReport) -> list[Metric]:
    families: list[Metric] = pickle.loads(told.families)  # noqa: S301
    return families


def busy(number: int) -> Metrics:
    """Numbers of every kind, different ones for each process."""
    metrics = Metrics(top_profiles=3)
    metrics.expect_routes(["/v1/classify"])
    metrics.set_kernels({"apply_adapters": "triton"})
    metrics.store_up.set(1)
    for _ in range(number):
        metrics.observe_request("/v1/classify", "ok", 0.01 * number)
        metrics.profile_requests.count("acme", f"profile{number % 2}")
    metrics.prompt_tokens.inc(100 * number)
    metrics.batch_size.observe(3 * number)
    metrics.connections.inc(number)
    metrics.tuning_jobs.set_function(lambda: {"queued": number})
    return metrics


def test_counters_add_up() -> None:
    one, other = Metrics(), Metrics()
    one.prompt_tokens.inc(2)
    other.prompt_tokens.inc(3)
    other.cache_hits["host"].inc(5)
    found = seen(one, other)
    assert found["xpeft_prompt_tokens_total[]"] == 5
    assert found["xpeft_profile_cache_hits_total[('tier', 'host')]"] == 5
    assert found["xpeft_profile_cache_hits_total[('tier', 'device')]"] == 0


def test_histograms_add_up() -> None:
    one, other = Metrics(), Metrics()
    one.batch_size.observe(3)
    other.batch_size.observe(6)
    other.batch_size.observe(2000)
    found = seen(one, other)
    buckets = {bound: found[f"xpeft_batch_size_bucket[('le', '{bound}')]"] for bound in ("2.0", "4.0", "8.0", "+Inf")}
    assert buckets == {"2.0": 0, "4.0": 1, "8.0": 2, "+Inf": 3}
    assert (found["xpeft_batch_size_sum[]"], found["xpeft_batch_size_count[]"]) == (2009, 3)


def test_gauges_add_up() -> None:
    one, other = Metrics(), Metrics()
    one.connections.inc(4)
    other.connections.inc(3)
    other.connections.dec()
    one.tuning_jobs.set_function(lambda: {"queued": 2})
    found = seen(one, other)
    assert found["xpeft_connections[]"] == 6
    assert found["xpeft_tuning_jobs_unfinished[('status', 'queued')]"] == 2


def test_a_series_that_one_process_alone_has_is_there_as_it_is() -> None:
    one, other = Metrics(), Metrics()
    one.profile_requests.count("acme", "desk")
    other.profile_requests.count("acme", "door")
    other.expect_routes(["/v1/classify"])
    other.observe_request("/v1/classify", "ok", 0.1)
    found = seen(one, other)
    for name in ("desk", "door"):
        assert found[f"xpeft_profile_requests_total[('profile', '{name}'), ('tenant', 'acme')]"] == 1
    assert found["xpeft_requests_total[('outcome', 'ok'), ('route', '/v1/classify')]"] == 1


def test_every_series_is_the_sum_of_the_processes_unless_it_is_one_of_theirs() -> None:
    processes = [busy(number).families() for number in (1, 2, 3)]
    values: dict[str, list[float]] = {}
    for families in processes:
        for sample in (sample for family in families for sample in family.samples):
            values.setdefault(key(sample), []).append(sample.value)
    expected = {name: CHOSEN.get(name.partition("[")[0], sum)(each) for name, each in values.items()}
    assert series(summed(processes)) == pytest.approx(expected)
    assert {name.partition("[")[0] for name in values} >= CHOSEN.keys()


def test_what_is_always_1_stays_1() -> None:
    found = seen(busy(1), busy(2), busy(3))
    facts = {name: value for name, value in found.items() if name.startswith(("xpeft_build_info", "xpeft_kernel_info"))}
    assert list(facts.values()) == [1, 1]


@pytest.mark.parametrize(("one", "other", "shown"), [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 0)])
def test_the_store_is_up_if_it_answers_every_process(one: int, other: int, shown: int) -> None:
    processes = Metrics(), Metrics()
    for metrics, up in zip(processes, (one, other), strict=True):
        metrics.store_up.set(up)
    assert seen(*processes)["xpeft_store_up[]"] == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [("process_start_time_seconds", 1000), ("process_max_fds", 1000), ("process_open_fds", 2000)],
)
@pytest.mark.parametrize("values", [(1000.0, 2000.0), (2000.0, 1000.0)])
def test_the_server_is_as_old_as_its_oldest_process_and_its_files_are_those_of_the_one_that_has_most(
    name: str, shown: float, values: tuple[float, float]
) -> None:
    def told(value: float) -> list[Metric]:
        families = Metrics().families()
        (family,) = (each for each in families if each.name == name)
        family.samples = [Sample(sample.name, sample.labels, value) for sample in family.samples]
        return families

    assert series(summed(map(told, values)))[f"{name}[]"] == shown


def test_what_processes_had_counted_when_they_ended_stays_in_the_sum_and_nothing_else_of_them_does() -> None:
    ended, lives = EndedProcesses(), busy(3)
    for number in (1, 2):
        ended.add(busy(number).families())
    found = seen(lives, ended)
    for name in ("xpeft_prompt_tokens_total[]", "xpeft_batch_size_sum[]", "xpeft_batch_size_bucket[('le', '8.0')]"):
        assert found[name] == seen(busy(1), busy(2), busy(3))[name]
    assert found["xpeft_profile_requests_total[('profile', 'profile1'), ('tenant', 'acme')]"] == 1 + 3
    for name in ("xpeft_connections[]", "xpeft_store_up[]", "xpeft_tuning_jobs_unfinished[('status', 'queued')]"):
        assert found[name] == seen(lives)[name]


def test_while_no_process_has_ended_there_is_nothing_to_add() -> None:
    lives = busy(1)
    assert described(summed([lives.families(), EndedProcesses().families()])) == described(lives.render())
    assert seen(lives, EndedProcesses())["xpeft_prompt_tokens_total[]"] == 100


def test_each_family_is_described_once_as_it_is_on_one_processs_own_page() -> None:
    page = summed(busy(number).families() for number in (1, 2))
    assert described(page) == described(busy(1).render())
    (build,) = (each for each in text_string_to_metric_families(page.decode()) if each.name == "xpeft_build_info")
    assert (build.type, build.documentation) == ("gauge", "What is running; always 1.")


def test_the_page_of_one_process_alone_is_its_own() -> None:
    metrics = busy(2)
    ours, own = (
        [line for line in page.decode().splitlines() if "process_" not in line]
        for page in (summed([metrics.families()]), metrics.render())
    )
    assert ours == own


async def test_a_process_shows_its_own_metrics_with_those_of_all_others(ends: Any) -> None:
    engine = busy(1)
    front = ConnectedMetrics(ends.here, top_profiles=3)
    front.prompt_tokens.inc(7)
    front.profile_requests.count("acme", "door")

    async def tell_metrics() -> MetricsReport:
        return front.report()

    async def families() -> list[bytes]:
        told = await ends.there.call("tell_metrics")
        engine.profile_requests.add(told.profile_requests)
        return [pickle.dumps(engine.families()), told.families]

    ends.methods["families"] = families
    ends.methods_here["tell_metrics"] = tell_metrics
    page = await front.page()
    assert series(page)["xpeft_prompt_tokens_total[]"] == 107
    assert series(page)["xpeft_profile_requests_total[('profile', 'door'), ('tenant', 'acme')]"] == 1
    assert described(page) == described(engine.render())
    # Its own alone are what it tells the others.
    assert series(front.render())["xpeft_prompt_tokens_total[]"] == 7


async def test_requests_by_profile_are_handed_over_and_everything_else_is_told_again(ends: Any) -> None:
    engine, front = Metrics(top_profiles=2), ConnectedMetrics(ends.here, top_profiles=2)
    for number in range(300):
        front.profile_requests.count("acme", "door")
        front.profile_requests.count("acme", f"profile{number}")
    front.prompt_tokens.inc(7)
    told = front.report()
    engine.profile_requests.add(told.profile_requests)
    found = series(summed([engine.families(), unpickled(told)]))
    by_profile = {name: value for name, value in found.items() if name.startswith("xpeft_profile_requests_total")}
    assert len(by_profile) == 2 + 1
    assert by_profile["xpeft_profile_requests_total[('profile', 'door'), ('tenant', 'acme')]"] == 300
    assert sum(by_profile.values()) == 600
    again = front.report()
    assert sum(again.profile_requests.values()) == 0
    assert series(summed([unpickled(again)]))["xpeft_prompt_tokens_total[]"] == 7


async def test_there_is_no_page_without_the_other_processes(ends: Any, until: Any) -> None:
    front = ConnectedMetrics(ends.here, top_profiles=3)
    ends.cut()
    await until(lambda: "here" in ends.lost)
    with pytest.raises(Unavailable, match="went away"):
        await asyncio.wait_for(front.page(), 10)
