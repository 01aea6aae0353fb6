"""The families of metrics, and the bounded one of profiles."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from xpeft_profiles import TooManyJobs, TooManyProfiles
from xpeft_server.api.errors import refusal_of, translate
from xpeft_server.engine.errors import InvalidInput, LimitReached, Overloaded, Unavailable
from xpeft_server.engine.metrics import REFUSALS, Metrics
from xpeft_server.engine.profile_requests import ProfileRequests

FAMILIES = {
    "refusals": "counter",
    "connections": "gauge",
    "connections_limit": "gauge",
    "connection_ends": "counter",
    "requests": "counter",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "profile_cache_hits": "counter",
    "profile_cache_misses": "counter",
    "profile_cache_evictions": "counter",
    "profile_cache_invalidations": "counter",
    "profile_uploads": "counter",
    "profile_damaged": "counter",
    "profile_wrong_bank": "counter",
    "profile_requests": "counter",
    "request_duration_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "request_inference_time_seconds": "histogram",
    "time_to_first_token_seconds": "histogram",
    "batch_size": "histogram",
    "batch_tokens": "histogram",
    "batch_profiles": "histogram",
    "profile_load_seconds": "histogram",
    "requests_running": "gauge",
    "requests_waiting": "gauge",
    "capacity": "gauge",
    "unverified_answers": "counter",
    "profiles_resident": "gauge",
    "kv_tokens": "gauge",
    "prefix_cache_hits": "counter",
    "prefix_cache_queries": "counter",
    "preemptions": "counter",
    "trace_spans": "counter",
    "tuning_jobs": "counter",
    "tuning_jobs_unfinished": "gauge",
    "store_up": "gauge",
    "build_info": "gauge",
    "kernel_info": "gauge",
}


def families(metrics: Metrics) -> dict:
    return {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}


def test_every_family_is_there_before_any_traffic_and_no_other():
    found = list(text_string_to_metric_families(Metrics().render().decode()))
    ours = [(each.name.removeprefix("xpeft_"), each.type) for each in found if each.name.startswith("xpeft_")]
    assert sorted(ours) == sorted(FAMILIES.items())
    assert all(each.name.startswith(("xpeft_", "process_")) for each in found)


def test_the_kv_cache_is_there_at_zero():
    lines = Metrics().render().decode().splitlines()
    assert {f'xpeft_kv_tokens{{state="{state}"}} 0.0' for state in ("used", "cached", "free")} <= set(lines)
    assert "xpeft_preemptions_total 0.0" in lines


def test_tuning_jobs_are_there_at_zero():
    lines = Metrics().render().decode().splitlines()
    for outcome in ("succeeded", "failed", "cancelled"):
        assert f'xpeft_tuning_jobs_total{{outcome="{outcome}"}} 0.0' in lines
    for status in ("queued", "running"):
        assert f'xpeft_tuning_jobs_unfinished{{status="{status}"}} 0.0' in lines


def test_the_jobs_that_wait_or_run_are_counted_at_each_scrape():
    metrics = Metrics()
    metrics.tuning_jobs.set_function(lambda: {"queued": 3})
    lines = metrics.render().decode().splitlines()
    assert 'xpeft_tuning_jobs_unfinished{status="queued"} 3.0' in lines
    assert 'xpeft_tuning_jobs_unfinished{status="running"} 0.0' in lines


def test_fixed_labels_are_there_at_zero():
    found = families(Metrics())
    for name in ("hits", "misses", "evictions", "invalidations"):
        samples = found[f"xpeft_profile_cache_{name}"].samples
        assert [(sample.labels["tier"], sample.value) for sample in samples] == [("host", 0), ("device", 0)]
    assert {s.labels["tier"] for s in found["xpeft_profiles_resident"].samples} == {"host", "device"}
    assert {s.labels["outcome"] for s in found["xpeft_profile_uploads"].samples} == {
        "created",
        "replaced",
        "identical",
        "refused",
        "failed",
    }
    sources = {s.labels["source"] for s in found["xpeft_profile_load_seconds"].samples}
    assert sources == {"host", "memory", "sqlite", "redis"}


def test_the_chosen_kernels_are_shown_and_replaced():
    metrics = Metrics()
    metrics.set_kernels({"apply_adapters": "reference"})
    metrics.set_kernels({"apply_adapters": "triton"})
    (sample,) = families(metrics)["xpeft_kernel_info"].samples
    assert (sample.labels, sample.value) == ({"operator": "apply_adapters", "implementation": "triton"}, 1)


def test_how_much_there_is_room_for_is_shown():
    metrics = Metrics()
    metrics.set_capacity({"queue_texts": 1024, "queue_tokens": 4096, "slots": 8, "sequences": 0})
    samples = families(metrics)["xpeft_capacity"].samples
    assert {sample.labels["resource"]: sample.value for sample in samples} == {
        "queue_texts": 1024,
        "queue_tokens": 4096,
        "slots": 8,
        "sequences": 0,
    }


def test_a_route_that_nobody_expects_cannot_be_observed():
    with pytest.raises(KeyError):
        Metrics().observe_request("/made/up", "ok", 0.1)


def counts(requests: ProfileRequests) -> dict[str, float]:
    (family,) = requests.collect()
    return {sample.labels["profile"]: sample.value for sample in family.samples}


def test_the_top_profiles_have_a_series_and_the_rest_is_other():
    requests = ProfileRequests("x", "x", top=2)
    for profile, times in {"a": 5, "b": 3, "c": 1}.items():
        for _ in range(times):
            requests.count("t", profile)
    assert counts(requests) == {"a": 5, "b": 3, "other": 1}


def test_a_profile_that_overtakes_gets_a_series_and_no_count_is_lost_or_falls():
    requests = ProfileRequests("x", "x", top=1)
    for profile, times in {"a": 2, "b": 3}.items():
        for _ in range(times):
            requests.count("t", profile)
    before = counts(requests)
    assert before == {"b": 0, "other": 5}
    requests.count("t", "b")
    assert counts(requests) == {"b": 1, "other": 5}


def test_series_and_memory_are_bounded_and_the_sum_is_exact():
    requests = ProfileRequests("x", "x", top=10)
    total = 0
    for number in range(5000):
        requests.count("t", f"rare-{number}")
        requests.count("t", f"often-{number % 10}")
        total += 2
    found = counts(requests)
    assert len(found) == 11
    assert set(found) == {f"often-{number}" for number in range(10)} | {"other"}
    assert sum(found.values()) == total
    assert len(requests._candidates) <= 256


def test_top_zero_counts_everything_as_other():
    requests = ProfileRequests("x", "x", top=0)
    requests.count("t", "a")
    assert counts(requests) == {"other": 1}


def test_profiles_of_two_tenants_are_two_series():
    metrics = Metrics(top_profiles=5)
    metrics.profile_requests.count("one", "p")
    metrics.profile_requests.count("two", "p")
    samples = families(metrics)["xpeft_profile_requests"].samples
    assert [(s.labels["tenant"], s.labels["profile"], s.value) for s in samples] == [
        ("one", "p", 1),
        ("two", "p", 1),
        ("", "other", 0),
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Overloaded("full"), "queue"),
        (Overloaded("behind", reason="queue_seconds"), "queue_seconds"),
        (LimitReached("request_rate", "2 a second"), "request_rate"),
        (TooManyProfiles(3), "profiles"),
        (TooManyJobs(4), "tuning_jobs"),
        (Unavailable("stopping"), None),
        (InvalidInput("empty"), None),
    ],
)
def test_what_is_answered_with_429_has_a_reason_and_nothing_else_has(error, reason):
    assert refusal_of(error) == reason
    assert (translate(error).status == 429) == (reason in REFUSALS)
