"""Which replica a request should go to."""

from __future__ import annotations

from collections import Counter

import pytest

from xpeft_ray.ranking import ranked

IDLE = {"a": 0, "b": 0, "c": 0, "d": 0}
KEYS = [f"tenant/profile-{number}" for number in range(2000)]


def first(key: str | None, loads: dict[str, int], slack: float = 1.25) -> str:
    return ranked(key, loads, slack)[0]


def test_a_profile_goes_to_the_same_replica_whatever_order_they_are_named_in() -> None:
    turned = dict(reversed(IDLE.items()))
    assert [first(key, IDLE) for key in KEYS] == [first(key, turned) for key in KEYS]


def test_profiles_are_spread_over_all_replicas() -> None:
    counts = Counter(first(key, IDLE) for key in KEYS)
    assert all(400 <= counts[replica] <= 600 for replica in IDLE)


def test_a_replica_that_goes_takes_no_other_replicas_profiles_along() -> None:
    left = {name: 0 for name in IDLE if name != "c"}
    before = {key: first(key, IDLE) for key in KEYS}
    assert all(first(key, left) == replica for key, replica in before.items() if replica != "c")


def test_a_replica_that_comes_takes_only_its_own_part() -> None:
    more = {**IDLE, "e": 0}
    moved = [key for key in KEYS if first(key, more) != first(key, IDLE)]
    assert all(first(key, more) == "e" for key in moved)
    assert 300 <= len(moved) <= 500


def test_nobody_joins_a_busy_replica_while_another_has_nothing_to_do() -> None:
    for key in KEYS[:50]:
        home = first(key, {"a": 0, "b": 0})
        other = "b" if home == "a" else "a"
        assert first(key, {home: 1, other: 0}) == other


@pytest.mark.parametrize(
    ("there", "elsewhere", "stays"), [(11, 10, True), (15, 10, True), (16, 10, False), (9, 0, False)]
)
def test_a_profile_stays_where_it_is_while_that_replica_has_little_more_than_its_part(
    there: int, elsewhere: int, stays: bool
) -> None:
    home = first("tenant/desk", {"a": 0, "b": 0})
    other = "b" if home == "a" else "a"
    assert (first("tenant/desk", {home: there, other: elsewhere}) == home) is stays


def test_a_request_without_a_profile_goes_where_least_is_to_do() -> None:
    assert ranked(None, {"a": 3, "b": 1, "c": 2}, 1.25) == ["b", "c", "a"]


def test_every_replica_is_ranked_once_so_that_one_with_room_is_always_found() -> None:
    loads = {"a": 70, "b": 3, "c": 0, "d": 12}
    for key in [*KEYS[:50], None]:
        assert sorted(ranked(key, loads, 1.25)) == sorted(loads)


def test_no_replicas_are_no_choice() -> None:
    assert ranked("tenant/desk", {}, 1.25) == []
