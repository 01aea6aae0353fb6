from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpeft_server.model.kv.buddy_ranges import BuddyRanges


@pytest.mark.parametrize("total", [0, 4, 8, 12, 28, 44])
def test_all_of_it_can_be_taken_and_given_back(total: int) -> None:
    ranges = BuddyRanges(total, 4)
    for _ in range(2):
        starts = [ranges.take(4) for _ in range(total // 4)]
        assert sorted(map(int, filter(None, starts))) == list(range(4, total, 4))
        assert ranges.take(4) is None
        assert ranges.free == 0
        for start in starts:
            assert start is not None
            ranges.give(start, 4)
        assert ranges.free == total
        longest = 1 << total.bit_length() >> 1
        if total:
            assert ranges.take(longest) == 0
            ranges.give(0, longest)


def test_the_shortest_range_that_is_long_enough_is_cut() -> None:
    ranges = BuddyRanges(28, 4)
    assert [ranges.take(4), ranges.take(4), ranges.take(4), ranges.take(16)] == [24, 16, 20, 0]


def test_a_range_grows_where_what_lies_behind_it_is_free() -> None:
    ranges = BuddyRanges(32, 4)
    assert ranges.take(4) == 0
    assert ranges.extend(0, 4, 16)
    assert ranges.free == 16
    assert ranges.take(4) == 16
    assert ranges.take(4) == 20
    assert not ranges.extend(16, 4, 8)
    ranges.give(16, 4)
    assert not ranges.extend(20, 4, 8)
    assert not ranges.extend(0, 16, 32)
    assert ranges.free == 12
    ranges.give(20, 4)
    assert ranges.extend(0, 16, 32)
    assert ranges.free == 0
    ranges.give(0, 32)
    assert ranges.take(32) == 0


def test_the_range_with_most_free_is_cleared() -> None:
    ranges = BuddyRanges(28, 4)
    for _ in range(7):
        ranges.take(4)
    for start in (0, 8, 12, 20, 24):
        ranges.give(start, 4)
    assert ranges.clear(16) == 0
    assert ranges.free == 8
    assert [ranges.take(4), ranges.take(4), ranges.take(4)] == [20, 24, None]


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3), st.booleans()), max_size=60))
def test_ranges_never_overlap_and_nothing_is_lost(shorts: int, moves: list[tuple[int, int, bool]]) -> None:
    ranges = BuddyRanges(4 * shorts, 4)
    taken: dict[int, tuple[int, int]] = {}
    for who, power, gives in moves:
        length = 4 << power
        if who in taken and gives:
            ranges.give(*taken.pop(who))
        elif who in taken:
            start, had = taken[who]
            if length > had and 2 * length <= 4 * shorts and ranges.extend(start, had, length):
                taken[who] = start, length
        elif length <= 4 * shorts:
            start = ranges.take(length)
            if start is not None:
                taken[who] = start, length
        held = [token for start, had in taken.values() for token in range(start, start + had)]
        assert len(held) == len(set(held))
        assert set(held) <= set(range(4 * shorts))
        assert ranges.free == 4 * shorts - len(held)
        assert all(start % had == 0 for start, had in taken.values())


@pytest.mark.parametrize(("total", "shortest"), [(30, 4), (30, 3)])
def test_what_cannot_be_cut_is_refused(total: int, shortest: int) -> None:
    with pytest.raises(ValueError, match=f"30 cannot be cut into ranges of {shortest}"):
        BuddyRanges(total, shortest)
