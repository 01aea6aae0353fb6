from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from xpeft_server.engine.device.segmented_lru import SegmentedLru


def of(*names: str, capacity: int = 5) -> SegmentedLru[int]:
    kept: SegmentedLru[int] = SegmentedLru(capacity)
    for number, name in enumerate(names):
        kept.add(name, number)
    return kept


def test_who_was_used_again_leaves_after_those_who_were_not() -> None:
    kept = of("a", "b", "c")
    kept.use("a")
    assert list(kept) == ["b", "c", "a"]
    kept.use("c")
    kept.use("a")
    assert list(kept) == ["b", "c", "a"]


def test_the_least_recently_used_of_too_many_proven_is_on_trial_again() -> None:
    kept = of("a", "b", "c", "d", "e")
    for name in ("a", "b", "c", "d", "e"):
        kept.use(name)
    assert list(kept) == ["a", "b", "c", "d", "e"]
    kept.use("a")  # proven again; now b is one too many
    assert list(kept) == ["b", "c", "d", "e", "a"]


def test_where_all_were_used_again_there_is_still_room_for_a_crowd_beside_most_of_them() -> None:
    kept = of(*"abcdefghij", capacity=10)
    for name in "abcdefghij":
        kept.use(name)
    for newcomer in "uvwxyz":
        kept.pop(next(iter(kept)))
        kept.add(newcomer, 0)
    assert list(kept) == ["y", "z", *"cdefghij"]


def test_values_stay_with_their_names_wherever_these_are() -> None:
    kept = of("a", "b")
    kept.use("b")
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (0, 1, None)
    assert list(kept) == ["a", "b"], "a look is no use"
    assert (kept.pop("a"), kept.pop("b"), kept.pop("b"), len(kept)) == (0, 1, None, 0)


def test_one_place_is_enough() -> None:
    kept = of("a", capacity=1)
    kept.use("a")
    assert (list(kept), kept.get("a")) == (["a"], 0)


def misses_of_lru(asked: NDArray[np.integer], capacity: int) -> int:
    kept: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for name in asked.tolist():
        misses += name not in kept
        kept[name] = None
        kept.move_to_end(name)
        if len(kept) > capacity:
            kept.popitem(last=False)
    return misses


def test_popular_names_are_found_more_often_than_with_one_order_for_all() -> None:
    weights = np.arange(1, 100_001) ** -1.1
    asked = np.random.default_rng(0).choice(100_000, 40_000, p=weights / weights.sum())
    kept, misses = SegmentedLru[bool](500), 0
    for name in map(str, asked):
        if kept.get(name):
            kept.use(name)
            continue
        misses += 1
        if len(kept) == 500:
            kept.pop(next(iter(kept)))
        kept.add(name, True)
    assert misses < 0.87 * misses_of_lru(asked, 500)
