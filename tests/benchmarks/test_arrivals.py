from __future__ import annotations

import numpy as np
import pytest

from xpeft_benchmarks.arrivals import Phase, arrivals, arrivals_at


def test_arrivals_are_in_order_and_as_many_as_the_rates_say() -> None:
    found = arrivals([Phase([50.0, 5.0, 0.0], 100.0)], seed=3)
    assert found == sorted(found)
    counts = np.bincount([stream for _, stream in found], minlength=3)
    assert counts.tolist() == pytest.approx([5000, 500, 0], rel=0.15)
    gaps = np.diff([moment for moment, stream in found if stream == 0])
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)
    assert arrivals([Phase([50.0], 1.0)], seed=3) != arrivals([Phase([50.0], 1.0)], seed=4)


def test_a_stream_comes_at_the_same_moments_whatever_the_others_ask_for() -> None:
    alone, beside = (arrivals([Phase([rate, 50.0], 2.0)], seed=3) for rate in (5.0, 500.0))
    second = [each for each in alone if each[1] == 1]
    assert second == [each for each in beside if each[1] == 1]
    assert len({moment for moment, _ in beside}) == len(beside)


def test_a_phase_begins_when_the_one_before_it_is_over() -> None:
    found = [moment for moment, _ in arrivals([Phase([0.0], 2.0), Phase([100.0], 1.0), Phase([0.0], 1.0)], seed=3)]
    assert 2.0 <= min(found) < 2.2
    assert 2.8 < max(found) <= 3.0


def test_phases_that_are_alike_have_the_same_bursts() -> None:
    quiet, flood = Phase([20.0, 30.0], 4.0), Phase([200.0, 300.0], 3.0)
    found = arrivals([quiet, flood, quiet], seed=3)
    before = [(moment, stream) for moment, stream in found if moment < 4.0]
    after = [(moment - 7.0, stream) for moment, stream in found if moment >= 7.0]
    assert len(before) > 100
    assert [stream for _, stream in after] == [stream for _, stream in before]
    assert [moment for moment, _ in after] == pytest.approx([moment for moment, _ in before])


def test_what_is_sent_at_a_rate_is_exactly_as_many_as_the_rate_says() -> None:
    assert [len(arrivals_at(40.0, 2.5, (1, number))) for number in range(5)] == [100] * 5


def test_arrivals_at_a_rate_know_nothing_of_each_other() -> None:
    found = np.array(arrivals_at(1000.0, 20.0, 3))
    gaps = np.diff(found)
    assert gaps.min() >= 0
    assert 0 <= found[0] < found[-1] < 20.0
    # An exponential distribution's deviation is its mean; even distances would have none.
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.05)
    assert np.corrcoef(gaps[1:], gaps[:-1])[0, 1] == pytest.approx(0, abs=0.03)


def test_the_same_seed_is_the_same_moments_and_another_one_is_not() -> None:
    assert arrivals_at(50.0, 1.0, (0, 1, 2)) == arrivals_at(50.0, 1.0, (0, 1, 2))
    assert arrivals_at(50.0, 1.0, (0, 1, 2)) != arrivals_at(50.0, 1.0, (0, 2, 1))
