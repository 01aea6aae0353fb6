from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from xpeft_benchmarks.registered import register, registered_key
from xpeft_benchmarks.results import Result
from xpeft_benchmarks.tenants.measurement import _Run, run_tenants
from xpeft_benchmarks.tenants.plan import TenantsPlan
from xpeft_benchmarks.tenants.results import (
    Flood,
    Neighbours,
    due_within,
    flood_results,
    latencies_of,
    neighbour_results,
    recovery,
)
from xpeft_profiles import BankGeometry, open_store

TEXTS = [" ".join(f"w{(start + word) % 100}" for word in range(1 + start % 9)) for start in range(40)]
GEOMETRY = BankGeometry(
    fingerprint="sha256:" + "ab" * 32,
    blocks=2,
    adapters=12,
    hidden=32,
    width=8,
    layer_norm=True,
    shared_heads={"topics": ("a", "b")},
)


def stream(*answers: tuple[float, float, int]) -> dict[str, list[float]]:
    """Of (due, latency, status)."""
    due, latencies, statuses = zip(*answers, strict=True)
    return {"due": list(due), "latencies": list(latencies), "statuses": list(statuses)}


async def test_registered_profiles_are_sound_and_all_different(tmp_path: Path) -> None:
    url, told = f"sqlite:///{tmp_path}/many.db", []
    await register(url, GEOMETRY, head="topics", profiles=5000, tenants=3, seed=1, tell=told.append)
    store = open_store(url)
    await store.open()
    keys = [registered_key(index, tenants=3) for index in (0, 1, 2, 4095, 4096, 4999)]
    found = await store.get_many(keys)
    profiles = [each.decode() for each in found if each is not None]
    await store.close()
    assert told == [4096, 5000]
    assert len({profile.version for profile in profiles}) == len(keys)
    for profile in profiles:
        profile.check_fits(GEOMETRY)
        assert (profile.k, profile.shared_head) == (6, "topics")


def test_only_what_was_answered_counts_and_the_neighbour_s_own_does_not() -> None:
    stretch = [stream((0, 9, 200)), stream((0, 1, 200), (1, 2, 429), (2, 3, 200))]
    assert latencies_of(stretch) == [9, 1, 3]
    assert latencies_of(stretch, but_first=True) == [1, 3]


def test_the_others_p95_is_compared_round_by_round() -> None:
    quiet = [[stream((0, 1.0, 200)), stream((0, 0.1, 200))] for _ in range(3)]
    greedy = [[stream((0, 9.0, 200), (0, 0, 429)), stream((0, slow, 200))] for slow in (0.11, 0.12, 0.2)]
    one, two = neighbour_results(Neighbours(quiet, greedy), tenants=2, share=1.0, greed=10.0, seconds=2.0)
    assert one.details["p95_ms"] == pytest.approx(100)
    assert two.details["p95_ratio"] == pytest.approx(1.2)
    assert (two.details["neighbour_refused"], two.details["others_refused"]) == (3, 0)
    assert list(two.speeds) == [0.5] * 3


def test_what_was_due_within_a_time_counts_from_its_start() -> None:
    whole = [stream((0.5, 1, 200), (2.0, 2, 429), (3.5, 3, 200)), stream((2.5, 4, 200))]
    assert due_within(whole, 2.0, 3.5) == [stream((0.0, 2, 429)), stream((0.5, 4, 200))]
    assert [len(each["due"]) for each in due_within(whole, 9, 10)] == [0, 0]


def test_a_flood_is_over_when_everything_is_as_before() -> None:
    after = [stream((0.1, 0.9, 200), (0.5, 0.02, 429), (1.5, 0.21, 200), (2.5, 0.05, 200))]
    assert recovery(after, normal=0.1) == 1.5
    assert recovery([stream((0.1, 0.1, 200))], normal=0.1) == 0.0


def test_goodput_is_what_was_answered_until_the_last_answer() -> None:
    during = [stream(*[(number / 100, 0.5, 200 if number % 2 else 429) for number in range(100)])]
    quiet = [stream((0.0, 0.1, 200), (1.0, 0.1, 200))]
    after = [stream((0.3, 0.4, 200), (1.0, 0.1, 200))]
    _, flood, end = flood_results(Flood(quiet, during, after), 50.0, times=5)
    assert flood.details["goodput_of_capacity"] == pytest.approx(50 / 1.49 / 50, abs=0.001)
    assert (flood.details["refused_429"], flood.details["unanswered"]) == (50, 0)
    assert end.details["recovery_seconds"] == 0.3


def test_a_time_in_which_nothing_is_answered_has_no_latency() -> None:
    refused, answered = [stream((0.5, 0.1, 429))], [stream((0.5, 0.1, 200))]
    before, _, after = flood_results(Flood(refused, answered, refused), 50.0, times=5)
    assert before.details == after.details == {"refused_429": 1, "other_errors": 0, "unanswered": 0}
    _, _, after = flood_results(Flood(answered, answered, refused), 50.0, times=5)
    assert after.details["recovery_seconds"] == 0.5


@pytest.fixture(scope="module")
def same_load() -> Iterator[None]:
    """What the server is asked for does not follow from how fast it was found to be: of a slow one that is nothing."""
    measure = _Run._capacity

    def capacity(run: _Run) -> float:
        assert measure(run) > 0
        return 150.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "_capacity", capacity)
        yield


@pytest.fixture(scope="module")
def results(tiny_bert: Path, same_load: None) -> dict[str, Result]:
    plan = TenantsPlan(
        plm=str(tiny_bert),
        bank="random:N=8,R=4,seed=0",
        device="cpu",
        dtype="float32",
        store=None,
        registered=400,
        tenants=4,
        load=0.2,
        seconds=0.2,
        flood_seconds=0.2,
        rounds=2,
        texts=64,
    )
    return {result.variant: result for result in run_tenants(plan, TEXTS, on_step=lambda _: None)}


def test_a_server_is_measured_with_many_profiles_a_neighbour_and_a_flood(results: dict[str, Result]) -> None:
    assert [name.partition(" of ")[0] for name in results] == [
        "32 profiles",
        "zipf:1.1",
        "c=1 resident",
        "c=1 never seen",
        "neighbour quiet",
        "neighbour greedy",
        "flood before",
        "flood during",
        "flood after",
    ]
    assert all(result.per_second > 0 for result in results.values())
    assert results["zipf:1.1 of 400 profiles"].ratios[0].to == "32 profiles"
    assert np.isfinite(results["c=1 never seen"].details["p50_added_ms"])
    assert results["neighbour greedy"].details["p95_ratio"] > 0
    assert results["flood during"].details["unanswered"] == 0
    assert results["flood during"].details["other_errors"] == 0
