from __future__ import annotations

import pytest

from xpeft_server.engine.profiles.round_size import RoundSize

MIB = 1 << 20


@pytest.fixture
def size() -> RoundSize:
    return RoundSize()


def test_of_the_largest_profiles_the_first_round_takes_no_more_than_a_store_can_send(size: RoundSize) -> None:
    assert size.keys * MIB == 32 * MIB


def test_rounds_of_small_profiles_grow_while_they_are_full(size: RoundSize) -> None:
    seen = []
    for _ in range(4):
        size.observe(size.keys, 700 * size.keys)
        seen.append(size.keys)
    assert seen == [64, 128, 128, 128]
    size.observe(3, 2100)
    assert size.keys == 32


def test_after_large_profiles_a_round_takes_few_and_after_small_ones_more_again(size: RoundSize) -> None:
    size.observe(32, 32 * MIB)
    assert size.keys == 8
    size.observe(8, MIB // 100)
    assert size.keys == 32


def test_however_large_they_are_a_round_takes_one(size: RoundSize) -> None:
    size.observe(1, 100 * MIB)
    assert size.keys == 1
    size.observe(1, 0)
    assert size.keys == 32
