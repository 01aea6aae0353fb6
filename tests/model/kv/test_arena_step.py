"""ArenaStep against float64, over an arena where everything that is no sequence's token is NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import Impl, PlacedSteps
from xpeft_server.model.kv.arena import ArenaRow, KvArena
from xpeft_server.model.kv.arena_step import ArenaStep, arena_tables, piece_rows, step_room
from xpeft_server.model.kv.attention import Run
from xpeft_server.model.kv.cache import KvShape

SIZE, KEYS = 16, 2
LENGTHS = (1, 3, 70, 130, 64, 65)

pytestmark = pytest.mark.usefixtures("quick_interpreter")


def arena_of(heads: int, tokens: int = 1024) -> KvArena:
    shape = KvShape(2, KEYS, SIZE, torch.float32, torch.device("cpu"), group=heads // KEYS)
    arena = KvArena(shape, tokens=tokens, context=512)
    arena.states.fill_(torch.nan)
    return arena


def claimed(arena: KvArena, tokens: int = 1) -> ArenaRow:
    row = arena.claim(tokens)
    assert row is not None
    return row


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Story:
    """Sequences that are read and written in random pieces, in an arena with no more room than they need."""

    def __init__(self, heads: int, *, lengths: Sequence[int] = LENGTHS, tokens: int = 704) -> None:
        self.lengths = lengths
        self.q = [normal(heads, n, SIZE, seed=n) for n in lengths]
        self.k = [normal(KEYS, n, SIZE, seed=1000 + n) for n in lengths]
        self.v = [normal(KEYS, n, SIZE, seed=2000 + n) for n in lengths]
        self.found: list[list[Tensor]] = [[] for _ in lengths]
        self._arena = arena_of(heads, tokens)
        self._rows = [claimed(self._arena) for _ in lengths]
        self._past = [0] * len(lengths)
        self._rng = np.random.default_rng(0)

    @property
    def unread(self) -> bool:
        return any(done < n for done, n in zip(self._past, self.lengths, strict=True))

    def step(self, scaling: float | None, window: int | None, impl: Impl) -> None:
        numbers, runs, start = [], [], 0
        for i in self._rng.permutation(len(self.lengths)):
            count = min(int(self._rng.choice([1, 1, 2, 40])), self.lengths[i] - self._past[i])
            if count:
                assert self._arena.lengthen(self._rows[i], self._past[i] + count) is self._rows[i]
                numbers.append(i)
                runs.append(Run(self._rows[i], start, count, self._past[i]))
                start += count
        attended = ArenaStep.of(self._arena, runs, start + 3, impl=impl).attend(
            1,
            self._packed(self.q, numbers, runs),
            self._packed(self.k, numbers, runs),
            self._packed(self.v, numbers, runs),
            scaling,
            window,
        )
        for i, run in zip(numbers, runs, strict=True):
            self.found[i].append(attended[0, run.start : run.start + run.length])
            self._past[i] += run.length

    def _packed(self, values: list[Tensor], numbers: list[int], runs: list[Run[ArenaRow]]) -> Tensor:
        """``[1, heads, T, d]``, ends with three fillers."""
        parts = [values[i][:, run.past : run.past + run.length] for i, run in zip(numbers, runs, strict=True)]
        return torch.cat([*parts, torch.full((values[0].shape[0], 3, SIZE), torch.nan)], dim=1)[None]


@pytest.mark.parametrize("window", [None, 5, 1000])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_sequences_read_and_written_in_any_pieces_see_themselves_and_what_is_before(
    heads: int, window: int | None, scaling: float | None, exact: Callable[..., Tensor]
) -> None:
    check(Story(heads), exact, scaling, window, Impl.AUTO)


@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_does_the_same(window: int | None, exact: Callable[..., Tensor]) -> None:
    check(Story(6, lengths=(1, 40, 70, 65), tokens=384), exact, None, window, Impl.TRITON)


def check(story: Story, exact: Callable[..., Tensor], scaling: float | None, window: int | None, impl: Impl) -> None:
    while story.unread:
        story.step(scaling, window, impl)
    for i in range(len(story.lengths)):
        scale = SIZE**-0.5 if scaling is None else scaling
        wanted = exact(story.q[i], story.k[i], story.v[i], scale, window).transpose(0, 1)
        torch.testing.assert_close(torch.cat(story.found[i]).double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.TRITON])
def test_a_tokens_bits_do_not_depend_on_who_else_is_in_the_step_or_where_its_row_is(impl: Impl) -> None:
    q, k, v = normal(6, SIZE, seed=1), normal(KEYS, SIZE, seed=2), normal(KEYS, SIZE, seed=3)
    before = normal(2, 39, KEYS, SIZE)

    def answer(company: int, place: int) -> Tensor:
        arena = arena_of(6, 64 * 32)
        runs = []
        for number in range(company + 1):
            own = number == place
            row = claimed(arena, 40)
            past = 39 if own else number % 30
            arena.states[0, :, row.start : row.start + past] = before if own else normal(2, past, KEYS, SIZE, seed=9)
            runs.append(Run(row, number, 1, past))
        tensors = []
        for mine in (q, k, v):
            rows = normal(company + 1, *mine.shape, seed=company)
            rows[place] = mine
            tensors.append(rows.transpose(0, 1)[None])
        return ArenaStep.of(arena, runs, company + 1, impl=impl).attend(0, *tensors, None, None)[0, place]

    alone = answer(0, 0)
    for company, place in ((1, 0), (1, 1), (7, 3), (31, 31)):
        assert torch.equal(answer(company, place), alone)


def test_a_neighbour_with_numbers_that_are_not_finite_spoils_nobody_else_nor_who_has_its_row_next() -> None:
    arena = arena_of(KEYS)
    good, bad = claimed(arena, 10), claimed(arena, 10)
    values = normal(1, KEYS, 2, SIZE)
    values[:, :, 1] = torch.nan
    arena.states[:, :, good.start : good.start + 5] = 1.0
    out = ArenaStep.of(arena, [Run(good, 0, 1, 5), Run(bad, 1, 1, 0)], 2).attend(0, values, values, values, None, None)
    assert out[0, 0].isfinite().all()
    assert out[0, 1].isnan().all()
    start = bad.start
    arena.release(bad)
    newcomer = claimed(arena, 10)
    assert newcomer.start == start
    fine = values[:, :, :1]
    step = ArenaStep.of(arena, [Run(newcomer, 0, 1, 0)], 1)
    assert step.attend(0, fine, fine, fine, None, None).isfinite().all()


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.TRITON])
def test_larger_tables_that_are_on_the_device_already_change_nothing(impl: Impl) -> None:
    arena = arena_of(6)
    rows = [claimed(arena, 70), claimed(arena, 10)]
    runs = [Run(rows[1], 0, 1, 0), Run(rows[0], 1, 50, 0)]
    small = ArenaStep.of(arena, runs, 51, impl=impl)
    places = torch.full((64,), arena.scratch)
    places[0], places[1:51] = rows[1].start, torch.arange(rows[0].start, rows[0].start + 50)
    pieces, joins = torch.zeros(20, 7, dtype=torch.int32), torch.zeros(5, 3, dtype=torch.int32)
    cuts = range(0, 50, piece_rows(arena))
    pieces[3] = torch.tensor([0, 1, rows[1].start, 0, 0, 0, 0])
    for number, done in enumerate(cuts, 5):
        pieces[number, :4] = torch.tensor([1 + done, min(50 - done, piece_rows(arena)), rows[0].start, done])
    large = ArenaStep(arena, places, PlacedSteps(pieces, joins, 9), impl=impl)
    tensors = [normal(1, heads, 64, SIZE, seed=heads) for heads in (6, KEYS, KEYS)]
    expected = small.attend(1, *(each[:, :, :51] for each in tensors), None, None)
    written = arena.states[:, :, : arena.scratch].clone()
    arena.states[1].fill_(torch.nan)
    found = large.attend(1, *tensors, None, None)
    assert torch.equal(found[:, :51], expected)
    assert torch.equal(arena.states[:, :, : arena.scratch].nan_to_num(), written.nan_to_num())


def test_a_captured_steps_tables_have_room_for_long_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = arena_of(6, 2048)
    arena.states.normal_(generator=torch.Generator().manual_seed(5))
    rows = [claimed(arena, tokens) for tokens in (500, 300, 10)]
    runs = [Run(row, number, 1, past) for number, (row, past) in enumerate(zip(rows, (480, 256, 7), strict=True))]
    tensors = [normal(1, heads, 4, SIZE, seed=heads) for heads in (6, KEYS, KEYS)]
    tables, room = arena_tables(arena, runs, 4), step_room(arena, 4)
    assert (len(tables.pieces), len(tables.joins), tables.parts) == (5, 2, 4)
    pieces, joins = torch.zeros(room.pieces, 7, dtype=torch.int32), torch.zeros(room.joins, 3, dtype=torch.int32)
    pieces[-5:], joins[-2:] = torch.from_numpy(tables.pieces), torch.from_numpy(tables.joins)
    large = ArenaStep(
        arena, torch.from_numpy(tables.places), PlacedSteps(pieces, joins, room.parts), impl=Impl.TRITON
    ).attend(0, *tensors, None, None)
    monkeypatch.setattr("xpeft_server.model.kv.arena_step.spare_pieces", lambda *_: 0)
    assert arena_tables(arena, runs, 4).joins.size == 0
    whole = ArenaStep.of(arena, runs, 4, impl=Impl.TRITON).attend(0, *tensors, None, None)
    assert torch.equal(large[:, :3], whole[:, :3])


def test_a_step_of_fillers_alone_writes_to_no_sequence() -> None:
    arena = arena_of(6)
    claimed(arena, 10)
    tensors = [normal(1, heads, 16, SIZE) for heads in (6, KEYS, KEYS)]
    assert ArenaStep.of(arena, [], 16).attend(0, *tensors, None, None).shape == (1, 16, 6, SIZE)
    assert arena.states[:, :, : arena.scratch].isnan().all()


def test_other_query_heads_than_the_pieces_were_cut_for_are_refused() -> None:
    arena = arena_of(6)
    step = ArenaStep.of(arena, [Run(claimed(arena), 0, 1, 0)], 1)
    states = normal(1, KEYS, 1, SIZE)
    with pytest.raises(ValueError, match="query has 2 heads, the arena's shape says 6"):
        step.attend(0, states, states, states, None, None)
