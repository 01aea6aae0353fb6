"""Which prefixes are found, what is copied, and what is kept, without a model."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from xpeft_server.engine.generation.prefix_cache import BLOCK, PrefixCache
from xpeft_server.engine.generation.sequence import Sequence
from xpeft_server.engine.requests import SamplingRule
from xpeft_server.model.kv.arena import ArenaRow, KvArena
from xpeft_server.model.kv.cache import KvCache, KvRow, KvShape

STORES = [KvCache, KvArena]
SHAPE = KvShape(blocks=1, heads=1, size=1, dtype=torch.float32, device=torch.device("cpu"))


def sequence_of(ids: list[int], tenant: str = "t") -> Sequence:
    nobody: Any = None
    rule = SamplingRule()
    return Sequence(ids, tenant=tenant, profile=None, limit=999, ends=(), rule=rule, seed=0, answer=nobody)


def blocks_of(*numbers: int) -> list[int]:
    return [number for number in numbers for _ in range(BLOCK)]


def states_of(store: Any, row: Any, tokens: int) -> Any:
    if isinstance(row, KvRow):
        return row.pool.states[:, :, row.index, :, :tokens].flatten()
    assert isinstance(row, ArenaRow)
    return store.states[:, :, row.start : row.start + tokens].flatten()


class Book:
    """Sequences over a store whose keys and values are their tokens' numbers."""

    def __init__(self, kind: type[KvCache | KvArena], seed: int) -> None:
        self.rng = random.Random(seed)
        self.store: Any = kind(SHAPE, tokens=2048, context=512)
        self.prefixes = PrefixCache(self.store, enabled=True)
        self.running: list[Sequence] = []
        self.found = 0

    def admit(self) -> None:
        # Few different texts, so that many begin alike.
        rng = self.rng
        ids = blocks_of(*(rng.randrange(2) for _ in range(rng.randint(0, 2))))
        ids += [rng.randrange(9) for _ in range(rng.randint(2, 90))]
        sequence = sequence_of(ids, rng.choice(["a", "b"]))
        self.prefixes.find(sequence)
        row = self.store.claim(len(ids))
        while row is None and (self.prefixes.evict() or self.end()):
            row = self.store.claim(len(ids))
        sequence.row = row
        assert self.prefixes.reuse(sequence) == sequence.cached
        taken = states_of(self.store, row, sequence.cached).tolist()
        assert taken == 2 * [self.number(sequence, each) for each in ids[: sequence.cached]]
        self.found += sequence.cached > 0
        numbers = torch.tensor([self.number(sequence, each) for each in ids], dtype=torch.float32)
        if isinstance(row, KvRow):
            row.pool.states[:, :, row.index, 0, : len(ids), 0] = numbers
        else:
            self.store.states[:, :, row.start : row.start + len(ids), 0, 0] = numbers
        self.running.append(sequence)
        if rng.random() < 0.9:
            self.prefixes.add(sequence)

    @staticmethod
    def number(sequence: Any, token: int) -> float:
        return token + (100 if sequence.tenant == "b" else 0)

    def end(self) -> bool:
        if not self.running:
            return False
        sequence = self.running.pop(self.rng.randrange(len(self.running)))
        self.prefixes.keep(sequence) if self.rng.random() < 0.8 else self.prefixes.drop(sequence)
        assert sequence.row is None
        return True

    def lengthen(self) -> None:
        sequence = self.rng.choice(self.running)
        row = self.store.lengthen(sequence.row, self.rng.choice([100, 200]))
        sequence.row = row if row is not None else sequence.row

    def check(self) -> None:
        prefixes, running = self.prefixes, sum(each.row.length for each in self.running)  # type: ignore[union-attr]
        assert prefixes.tokens == sum(each.shelved.length for each in prefixes._kept)  # type: ignore[union-attr]
        assert self.store.used == running + prefixes.tokens <= self.store.tokens
        for digest, prefix in prefixes._by_digest.items():
            assert digest in prefix.digests
            assert prefix.row is not None


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_and_goes_a_found_prefix_has_the_tokens_own_numbers_and_no_room_is_lost(
    kind: type[KvCache | KvArena], seed: int
) -> None:
    book = Book(kind, seed)
    for _ in range(600):
        rng = book.rng
        action = rng.choice([book.admit, book.admit, book.end, book.lengthen if book.running else book.end])
        action() if rng.random() < 0.97 else book.prefixes.evict()
        book.check()
    assert book.found > 50
    while book.end() or book.prefixes.evict():
        pass
    assert book.store.used == 0
    assert not book.prefixes._by_digest


def test_of_the_prefixes_that_are_kept_the_one_used_longest_ago_goes_first() -> None:
    store: Any = KvCache(SHAPE, tokens=2048, context=512)
    prefixes = PrefixCache(store, enabled=True)

    def prompt(*blocks: int) -> Sequence:
        return sequence_of([*blocks_of(*blocks), 1, 2])

    def write(*blocks: int) -> None:
        sequence = prompt(*blocks)
        sequence.row = store.claim(len(sequence.ids))
        prefixes.add(sequence)
        prefixes.keep(sequence)

    for blocks in ((1,), (2, 2), (3,)):
        write(*blocks)
    assert prefixes.find(prompt(1, 5)) is not None
    assert prefixes.evict()
    assert [prefixes.find(prompt(each)) is not None for each in (1, 2, 3)] == [True, False, True]
    # One that is longer takes the place of the shorter; one that is the same adds nothing.
    before = prefixes.tokens
    write(1, 7)
    write(1, 7)
    assert prefixes.tokens == before + BLOCK
    found = prefixes.find(prompt(1, 7, 8))
    assert found is not None
    assert found.tokens == 2 * BLOCK
