from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xpeft_server.model.kv.arena import ArenaRow, KvArena
from xpeft_server.model.kv.cache import KvCache, KvRow, KvShape

SHAPE = KvShape(blocks=2, heads=3, size=4, dtype=torch.float32, device=torch.device("cpu"))


def arena_of(tokens: int = 1024, context: int = 512) -> KvArena:
    arena = KvArena(SHAPE, tokens=tokens, context=context)
    arena.states.fill_(torch.nan)
    return arena


def claimed(arena: KvArena, tokens: int) -> ArenaRow:
    row = arena.claim(tokens)
    assert row is not None
    return row


def write(arena: KvArena, row: ArenaRow, value: float, *, start: int = 0) -> None:
    arena.states[:, :, row.start + start : row.start + row.length] = value


def read(arena: KvArena, row: ArenaRow, *, end: int | None = None) -> set[float]:
    return set(arena.states[:, :, row.start : row.start + (end or row.length)].flatten().tolist())


def test_rows_are_as_long_as_the_next_power_of_two() -> None:
    arena = arena_of()
    assert [claimed(arena, tokens).length for tokens in (1, 64, 65, 200)] == [64, 64, 128, 256]
    assert arena.used == 512


@pytest.mark.parametrize(("tokens", "context", "longest"), [(1000, 100, 128), (100, 512, 64), (10, 512, 64)])
def test_the_longest_row_follows_from_room_and_context(tokens: int, context: int, longest: int) -> None:
    assert arena_of(tokens, context).longest == longest


def test_all_memory_is_there_from_the_beginning_and_never_moves() -> None:
    arena = arena_of(700)
    states, held = arena.states.data_ptr(), arena.states.nbytes
    assert held == (640 + 1) * SHAPE.token_bytes
    assert arena.scratch == 640
    rows = [claimed(arena, 64) for _ in range(10)]
    for row in rows[::2]:
        arena.release(row)
    arena.lengthen(rows[1], 300)
    assert (arena.states.data_ptr(), arena.states.nbytes) == (states, held)


def test_a_row_grows_where_it_is_if_what_lies_behind_is_free() -> None:
    arena = arena_of(512)
    row = claimed(arena, 64)
    write(arena, row, 7.0)
    assert arena.lengthen(row, 64) is row
    assert arena.lengthen(row, 129) is row
    assert (row.start, row.length, arena.used) == (0, 256, 256)
    assert read(arena, row, end=64) == {7.0}


def test_a_row_that_cannot_grow_moves_with_all_that_is_in_it() -> None:
    arena = arena_of(512)
    row, behind = claimed(arena, 64), claimed(arena, 64)
    write(arena, row, 7.0)
    write(arena, behind, 8.0)
    assert arena.lengthen(row, 65) is row
    assert (row.start, row.length, arena.used) == (128, 128, 192)
    assert read(arena, row, end=64) == {7.0}
    assert read(arena, behind) == {8.0}
    assert claimed(arena, 64).start == 0


def test_without_room_to_grow_the_row_stays_as_it_is() -> None:
    arena = arena_of(192, 128)
    row, other = claimed(arena, 64), claimed(arena, 128)
    write(arena, row, 7.0)
    assert arena.lengthen(row, 65) is None
    assert row.length == 64
    assert read(arena, row) == {7.0}
    arena.release(other)
    assert arena.lengthen(row, 65) is row


def test_what_is_free_in_pieces_makes_a_long_row_and_who_moves_for_it_keeps_what_is_theirs() -> None:
    arena = arena_of(1024, 512)
    rows = [claimed(arena, 64) for _ in range(16)]
    for number, row in enumerate(rows):
        write(arena, row, number)
    for row in rows[::2]:
        arena.release(row)
    long = claimed(arena, 512)
    write(arena, long, 99.0)
    assert arena.used == 1024
    assert arena.claim(1) is None
    assert [read(arena, row) for row in rows[1::2]] == [{number} for number in range(1, 16, 2)]
    assert read(arena, long) == {99.0}


def test_a_row_grows_in_a_full_arena_by_changing_places() -> None:
    arena = arena_of(192, 128)
    small, grows = claimed(arena, 64), claimed(arena, 64)
    if grows.start != 128:
        small, grows = grows, small
    assert (small.start, grows.start) == (0, 128)
    write(arena, small, 1.0)
    write(arena, grows, 2.0)
    assert arena.lengthen(grows, 128) is grows
    assert (small.start, grows.start) == (128, 0)
    assert read(arena, small) == {1.0}
    assert read(arena, grows, end=64) == {2.0}
    assert arena.used == 192


def test_a_row_stays_as_it_is_where_the_device_has_no_memory_to_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = arena_of(256, 128)
    row, *others = (claimed(arena, 64) for _ in range(3))
    write(arena, row, 7.0)

    def no_memory(tensor: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as without:
        without.setattr(torch.Tensor, "clone", no_memory)
        assert arena.lengthen(row, 65) is None
    assert (row.start, row.length, arena.used) == (0, 64, 192)
    assert arena.lengthen(row, 65) is row
    assert read(arena, row, end=64) == {7.0}
    for each in (row, *others):
        arena.release(each)
    assert claimed(arena, 128).start == 0


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([10, 192, 320, 700, 1000, 1024]),
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 400), st.booleans()), max_size=80),
)
def test_there_is_room_whenever_pools_have_it_and_everybody_keeps_what_is_theirs(
    tokens: int, moves: list[tuple[int, int, bool]]
) -> None:
    arena, pools = arena_of(tokens, 512), KvCache(SHAPE, tokens=tokens, context=512)
    rows: dict[int, tuple[ArenaRow, KvRow]] = {}
    for who, wanted, leaves in moves:
        most = min(wanted, arena.longest)
        if who not in rows:
            spare = 40 if leaves else 0
            row, pooled = arena.claim(most, spare=spare), pools.claim(most, spare=spare)
            assert (row is None) == (pooled is None)
            if row is not None and pooled is not None:
                rows[who] = row, pooled
                write(arena, row, who)
        elif leaves:
            row, pooled = rows.pop(who)
            arena.release(row)
            pools.release(pooled)
        else:
            row, pooled = rows[who]
            before = row.length
            longer = pools.lengthen(pooled, most)
            assert (arena.lengthen(row, most) is None) == (longer is None)
            rows[who] = row, longer or pooled
            assert read(arena, row, end=before) == {who}
            write(arena, row, who)
        for owner, (row, pooled) in rows.items():
            assert read(arena, row) == {owner}
            assert row.length == pooled.pool.length
            assert row.start % row.length == 0
            assert row.start + row.length <= arena.scratch
        assert arena.used == pools.used
    for row, _ in rows.values():
        arena.release(row)
    assert arena.used == 0
    assert claimed(arena, arena.longest).start == 0
