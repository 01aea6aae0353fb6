"""From what was sent and answered to the numbers that are reported."""

from __future__ import annotations

import math

import pytest

from xpeft_benchmarks.load.exchange import Exchange
from xpeft_benchmarks.load.points import Point, Stretch
from xpeft_benchmarks.load.results import largest_rate, results_of
from xpeft_benchmarks.load.slo import Slo
from xpeft_benchmarks.load.sweep import Sweep
from xpeft_benchmarks.load.tables import load_tables
from xpeft_benchmarks.results import Result

SLO = Slo(0.1)
FACTS = {"plm": "tiny", "dtype": "float32", "device": "cpu"}


def ok(total: float, late: float = 0.0, **stages: float) -> Exchange:
    return Exchange(late, 200, 5, {**stages, "total": total})


def lost(status: int) -> Exchange:
    return Exchange(0.0, status, 0, {})


def stretch(*exchanges: Exchange, seconds: float = 1.0, problem: str = "") -> Stretch:
    return Stretch(seconds, exchanges, client_cpu=0.001 * len(exchanges), problem=problem)


def test_what_was_answered_and_what_was_in_time() -> None:
    one = stretch(ok(0.05), ok(0.1), ok(0.2), lost(429), lost(500), lost(0), seconds=2.0)
    assert one.answered() == 1.5
    assert one.goodput(SLO) == 1.0
    assert one.share(SLO) == pytest.approx(2 / 6)
    assert one.stage("total") == [0.05, 0.1, 0.2]


def test_quantiles_are_of_the_answers_that_tell() -> None:
    one = stretch(*(ok(number / 100, queue=0.5) for number in range(1, 102)), ok(9.0))
    assert one.quantiles("queue") == [0.5] * 4
    assert stretch(*(ok(number / 100) for number in range(101))).quantiles("total") == pytest.approx(
        [0.5, 0.9, 0.95, 0.99]
    )
    assert all(map(math.isnan, one.quantiles("fill")))
    assert all(map(math.isnan, stretch(lost(429)).quantiles("total")))


def test_the_client_was_late_if_it_made_more_than_a_tenth_of_the_latency() -> None:
    assert not stretch(*[ok(0.1, late=0.01)] * 100).client_was_late()
    assert stretch(*[ok(0.1, late=0.0101)] * 100).client_was_late()
    # A twentieth of the requests is no p95, but it is a p99.
    assert stretch(*[ok(0.1)] * 97, *[ok(0.1, late=0.05)] * 3).client_was_late()
    assert not stretch(lost(429)).client_was_late()


def test_of_streams_the_client_is_late_by_the_first_token() -> None:
    assert stretch(*[ok(9.0, late=0.02, first_token=0.1)] * 9).client_was_late()


def test_a_point_is_late_in_half_of_its_rounds() -> None:
    good, late = stretch(ok(0.1)), stretch(ok(0.1, late=0.1))
    assert Point("a", 10.0, [good, late]).client_was_late()
    assert not Point("a", 10.0, [good, late, good]).client_was_late()


def test_the_largest_rate_is_where_every_lower_one_was_kept_too() -> None:
    kept, missed = stretch(*[ok(0.1)] * 99, lost(429)), stretch(*[ok(0.1)] * 98, lost(429), ok(0.11))
    points = [Point("a", rate, [each]) for rate, each in ((10, kept), (20, kept), (30, missed), (40, kept))]
    assert largest_rate(points, SLO, 0) == 20
    assert largest_rate(points[:2], SLO, 0) == 20
    assert largest_rate(points[2:], SLO, 0) == 0


@pytest.fixture
def results() -> dict[str, Result]:
    """Two targets at two rates, three rounds: the first one is twice as quick, and its first round is slow."""
    points = []
    for rate in (2.0, 4.0):
        for name, total in (("new", 0.05), ("old", 0.1)):
            rounds = [[ok(total * slow, late=0.001, queue=0.01)] * int(rate) for slow in (3, 1, 1)]
            points.append(Point(name, rate, [stretch(*each) for each in rounds]))
    points[-1].rounds[1] = stretch(lost(429), lost(503), lost(0), ok(0.1), problem="429 busy")
    sweep = Sweep(points, {"new": FACTS, "old": FACTS}, {"new": 12.3456789})
    return {result.variant: result for result in results_of(sweep, SLO, "POST /v1/classify")}


def test_a_result_for_each_target_at_each_rate_and_one_for_what_it_keeps_up_with(results: dict[str, Result]) -> None:
    assert list(results) == ["new 2/s", "old 2/s", "new 4/s", "old 4/s", "new within 100 ms", "old within 100 ms"]
    assert list(results["new 2/s"].speeds) == [0.0, 2.0, 2.0]
    assert list(results["new within 100 ms"].speeds) == [0.0, 4.0, 4.0]
    assert list(results["old within 100 ms"].speeds) == [0.0, 2.0, 4.0]
    assert results["new within 100 ms"].details == {"target": FACTS, "with_32_in_flight": 12.346}
    assert results["old within 100 ms"].details == {"target": FACTS}


def test_times_are_medians_of_the_rounds_in_milliseconds(results: dict[str, Result]) -> None:
    details = results["new 2/s"].details
    assert [details[f"p{point}_ms"] for point in (50, 90, 95, 99)] == [50.0] * 4
    assert details["rounds_ms"]["p99"] == [150.0, 50.0, 50.0]
    assert details["stages_ms"] == {"queue": {"p50": 10.0, "p90": 10.0, "p95": 10.0, "p99": 10.0}}
    assert details["client_late_ms"]["p99"] == 1.0
    assert details["client_was_late"] is False
    assert details["client_cpu_ms"] == 1.0
    assert details["tokens"] == {"p50": 5.0, "p95": 5.0, "p100": 5.0}


def test_what_was_not_answered_is_counted_by_its_reason(results: dict[str, Result]) -> None:
    details = results["old 4/s"].details
    names = ("requests", "refused_429", "other_errors", "unanswered", "first_problem", "share_within")
    assert [details[name] for name in names] == [12, 1, 1, 1, "429 busy", 0.25]
    assert "first_problem" not in results["new 4/s"].details


def test_the_first_target_is_compared_with_the_second_round_by_round(results: dict[str, Result]) -> None:
    details = results["new 2/s"].details
    assert [details[f"p50_ratio{end}"] for end in ("", "_low", "_high")] == [0.5, 0.5, 0.5]
    assert "p50_ratio" not in results["old 2/s"].details
    # In the first round none of the other's answers was in time: there is nothing to compare with.
    assert results["new 2/s"].ratios == []


def test_a_target_that_answers_nothing_has_no_times() -> None:
    sweep = Sweep([Point("a", 2.0, [stretch(lost(429), lost(429))])], {"a": FACTS}, {})
    one, _ = results_of(sweep, SLO, "POST /v1/classify")
    assert (one.details["p50_ms"], one.details["rounds_ms"]["p50"], one.details["stages_ms"]) == (None, [None], {})
    assert "tokens" not in one.details


def test_goodput_is_compared_where_there_is_any() -> None:
    points = [Point(name, 2.0, [stretch(*each)]) for name, each in (("a", [ok(0.1)] * 3), ("b", [ok(0.1)] * 2))]
    (compared,) = results_of(Sweep(points, {"a": FACTS, "b": FACTS}, {}), SLO, "POST /v1/classify")[0].ratios
    assert (compared.to, compared.median) == ("b 2/s", 1.5)


def test_the_tables_say_how_it_looks_where_time_went_how_targets_compare_and_what_they_keep(
    results: dict[str, Result],
) -> None:
    latency, stages, compared, kept = load_tables(list(results.values()))
    row = dict(zip(latency.columns, latency.rows[3], strict=True))
    assert row == {
        "target, rate": "old 4/s",
        "answered/s": "4.0",
        "within/s": "1.0",
        "share": "25.0%",
        "p50 ms": "100.0",
        "p90": "100.0",
        "p95": "100.0",
        "p99": "100.0",
        "429": "1",
        "failed": "2",
        "client": "in time",
    }
    assert stages.columns == ("p50 / p99 ms", "queue")
    assert stages.rows[0] == ("new 2/s", "10.0 / 10.0")
    assert [each[0] for each in compared.rows] == ["new 2/s", "new 4/s"]
    assert compared.rows[0][2] == "0.500 (0.500 to 0.500)"
    assert kept.rows == [("new within 100 ms", "4 requests/s"), ("old within 100 ms", "2 requests/s")]


def test_a_table_says_where_the_client_was_late() -> None:
    sweep = Sweep([Point("a", 2.0, [stretch(ok(0.1, late=0.05))])], {"a": FACTS}, {})
    latency, _, _ = load_tables(results_of(sweep, SLO, "POST /v1/classify"))
    assert latency.rows[0][-1] == "late: p99 50.0 ms, do not trust"
