from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xpeft_server.model.kv.cache import KvCache, KvPool, KvRow, KvShape

SHAPE = KvShape(blocks=2, heads=3, size=4, dtype=torch.float32, device=torch.device("cpu"))


def cache_of(tokens: int = 1024, context: int = 512) -> KvCache:
    return KvCache(SHAPE, tokens=tokens, context=context)


def write(row: KvRow, value: float) -> None:
    row.pool.states[:, :, row.index] = value


def read(row: KvRow) -> set[float]:
    return set(row.pool.states[:, :, row.index].flatten().tolist())


def test_rows_are_as_long_as_the_next_power_of_two() -> None:
    cache = cache_of()
    lengths = [cache.claim(tokens) for tokens in (1, 64, 65, 200)]
    assert [row.pool.length for row in lengths if row] == [64, 64, 128, 256]
    assert cache.used == 512


@pytest.mark.parametrize(("tokens", "context", "longest"), [(1000, 100, 128), (100, 512, 64), (10, 512, 64)])
def test_the_longest_row_follows_from_room_and_context(tokens: int, context: int, longest: int) -> None:
    assert cache_of(tokens, context).longest == longest


def test_a_sequence_as_long_as_the_longest_row_always_fits_alone() -> None:
    cache = cache_of(700, 512)
    assert cache.claim(cache.longest) is not None


def test_what_does_not_fit_beside_the_others_gets_no_row_and_takes_no_room() -> None:
    cache = cache_of(192, 128)
    first = cache.claim(100)
    assert first is not None
    assert cache.claim(65) is None
    assert cache.claim(1, spare=1) is None
    assert cache.used == 128
    assert cache.claim(64) is not None


def test_a_longer_row_has_what_the_shorter_had_and_zeros_behind_it() -> None:
    cache = cache_of()
    row = cache.claim(64)
    assert row is not None
    write(row, 7.0)
    assert cache.lengthen(row, 64) is row
    longer = cache.lengthen(row, 65)
    assert longer is not None
    states = longer.pool.states[:, :, longer.index]
    assert (states[:, :, :, :64] == 7).all()
    assert (states[:, :, :, 64:] == 0).all()
    assert cache.used == 128


def test_without_room_to_grow_the_row_stays_as_it_is() -> None:
    cache = cache_of(192, 128)
    row, other = cache.claim(64), cache.claim(128)
    assert row is not None
    assert other is not None
    write(row, 7.0)
    assert cache.lengthen(row, 65) is None
    assert read(row) == {7.0}
    cache.release(other)
    assert cache.lengthen(row, 65) is not None


def test_a_row_that_there_is_no_memory_for_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(64 * 100, 128)
    rows = [cache.claim(64) for _ in range(8)]
    for number, row in enumerate(rows, start=1):
        assert row is not None
        write(row, float(number))

    def nothing(pool: KvPool, rows: int) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")

    with monkeypatch.context() as patch:
        patch.setattr(KvPool, "_zeros", nothing)
        for take in (lambda: cache.claim(64), lambda: cache.claim(65), lambda: cache.lengthen(rows[0], 65)):
            with pytest.raises(RuntimeError, match="can't allocate"):
                take()
        assert cache.used == 8 * 64
        for row in rows[1:]:
            assert row is not None
            cache.release(row)
    assert rows[0] is not None
    assert read(rows[0]) == {1.0}
    assert cache.used == 64
    newcomer = cache.claim(64)
    assert newcomer is not None
    assert read(newcomer) == {0.0}
    cache.release(newcomer)
    cache.release(rows[0])
    assert cache.bytes == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 400)), max_size=80))
def test_whatever_comes_and_goes_everybody_keeps_what_is_theirs_and_newcomers_find_zeros(
    moves: list[tuple[int, int]],
) -> None:
    cache = cache_of(2048, 512)
    rows: dict[int, KvRow] = {}
    for number, (who, tokens) in enumerate(moves):
        if who not in rows:
            row = cache.claim(tokens)
            if row is not None:
                assert read(row) == {0.0}
                rows[who] = row
                write(row, who + 1.0)
        elif number % 2:
            cache.release(rows.pop(who))
        else:
            longer = cache.lengthen(rows[who], max(tokens, rows[who].pool.length))
            if longer is not None:
                rows[who] = longer
                write(longer, who + 1.0)
        for owner, row in rows.items():
            assert read(row) == {owner + 1.0}
            assert row.pool.rows[row.index] is row
        assert cache.used == sum(row.pool.length for row in rows.values()) <= cache.tokens
    for row in rows.values():
        cache.release(row)
    assert cache.used == 0
    assert all(pool.states.numel() == 0 for pool in cache.pools.values())


def test_memory_is_given_back_when_many_sequences_have_gone() -> None:
    cache = cache_of(64 * 1000, 64)
    rows = [cache.claim(64) for _ in range(1000)]
    peak = cache.bytes
    for row in rows[3:]:
        assert row is not None
        cache.release(row)
    assert cache.bytes <= peak / 50
    for row in rows[:3]:
        assert row is not None
        cache.release(row)
    assert cache.bytes == 0
