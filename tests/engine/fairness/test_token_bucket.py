from __future__ import annotations

import pytest

from xpeft_server.engine.fairness.token_bucket import TokenBucket


def test_a_second_s_worth_may_come_at_once_and_then_one_at_a_time() -> None:
    bucket = TokenBucket(0.0)
    for _ in range(5):
        assert bucket.wait(5.0, 1.0, 0.0) == 0.0
        bucket.spend(1.0)
    assert bucket.wait(5.0, 1.0, 0.0) == pytest.approx(0.2)
    assert bucket.wait(5.0, 1.0, 0.15) == pytest.approx(0.05)
    assert bucket.wait(5.0, 1.0, 0.2) == pytest.approx(0.0)


def test_a_rate_below_one_lets_one_through() -> None:
    bucket = TokenBucket(0.0)
    assert bucket.wait(0.1, 1.0, 0.0) == 0.0
    bucket.spend(1.0)
    assert bucket.wait(0.1, 1.0, 4.0) == pytest.approx(6.0)


def test_who_overdrew_waits_until_it_is_made_up_for() -> None:
    bucket = TokenBucket(0.0)
    bucket.spend(1000.0)
    assert bucket.wait(100.0, 0.0, 0.0) == pytest.approx(9.0)
    assert not bucket.is_full(100.0, 5.0)
    assert bucket.wait(100.0, 0.0, 9.0) == pytest.approx(0.0)
    assert bucket.is_full(100.0, 10.0)


def test_nothing_is_saved_up() -> None:
    bucket = TokenBucket(0.0)
    bucket.wait(5.0, 1.0, 1e6)
    bucket.spend(5.0)
    assert bucket.wait(5.0, 1.0, 1e6) == pytest.approx(0.2)


def test_without_a_rate_nothing_is_counted_and_a_new_one_starts_even() -> None:
    bucket = TokenBucket(0.0)
    bucket.spend(1e9)
    assert bucket.wait(None, 1.0, 0.0) == 0.0
    assert bucket.wait(1.0, 1.0, 0.0) == 0.0
