from __future__ import annotations

import pytest

from xpeft_benchmarks.rounds import percentiles, ratio, time_interleaved


def test_every_variant_runs_once_to_warm_up_and_once_a_round() -> None:
    ran: list[str] = []
    variants = {name: (lambda name=name: ran.append(name)) for name in "abc"}
    seconds = time_interleaved(variants, 4, 0)
    assert ran[:3] == ["a", "b", "c"]
    rounds = [ran[start : start + 3] for start in range(3, len(ran), 3)]
    assert [sorted(each) for each in rounds] == [["a", "b", "c"]] * 4
    assert len({tuple(each) for each in rounds}) > 1
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_round_is_timed_by_the_clock_that_is_given() -> None:
    ticks = iter([0.0, 2.0, 5.0, 9.0])
    seconds = time_interleaved({"a": lambda: None}, 2, 0, clock=lambda: next(ticks))
    assert seconds == {"a": [2.0, 4.0]}


def test_rounds_are_reported_as_they_end() -> None:
    seen: list[int] = []
    time_interleaved({"a": lambda: None}, 3, 0, on_round=seen.append)
    assert seen == [1, 2, 3]


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians() -> None:
    found = ratio("bare", [9.0, 20.0, 300.0], [10.0, 40.0, 300.0])
    assert found.to == "bare"
    assert found.median == pytest.approx(0.9)
    assert (found.low, found.high) == pytest.approx((0.7, 0.95))


def test_percentiles_lie_between_their_neighbours() -> None:
    assert percentiles([1.0, 2.0, 3.0, 4.0, 5.0], [0, 50, 90, 100]) == pytest.approx([1.0, 3.0, 4.6, 5.0])
