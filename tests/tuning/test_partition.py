from __future__ import annotations

from collections import Counter

import pytest

from xpeft_tuning.dataset import Dataset, Example, Split
from xpeft_tuning.partition import partition


def _rows(**counts: int) -> Dataset:
    examples = [Example(f"{label} {number}", label) for label, count in counts.items() for number in range(count)]
    return Dataset(tuple(examples), tuple(counts))


def test_the_same_share_of_every_label_is_held_out() -> None:
    parts = partition(_rows(a=50, b=10), held_out=0.2, choose=False, seed=0)
    assert Counter(row.label for row in parts.held_out) == {"a": 10, "b": 2}
    assert Counter(row.label for row in parts.train) == {"a": 40, "b": 8}
    assert parts.dev == ()
    assert not set(parts.train) & set(parts.held_out)


def test_the_seed_decides_which_rows_are_held_out() -> None:
    drawn = [partition(_rows(a=50, b=10), held_out=0.2, choose=False, seed=seed).held_out for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_row_of_every_label_stays_to_be_learned_from() -> None:
    parts = partition(_rows(a=1, b=2, c=3), held_out=0.9, choose=False, seed=0)
    assert Counter(row.label for row in parts.train) == {"a": 1, "b": 1, "c": 1}


def test_nothing_is_held_out_where_the_share_is_zero() -> None:
    assert partition(_rows(a=5, b=5), held_out=0, choose=False, seed=0).held_out == ()


def test_rows_for_the_choice_of_an_epoch_come_out_of_train() -> None:
    parts = partition(_rows(a=50, b=50), held_out=0.2, choose=True, seed=0)
    assert [len(part) for part in parts] == [64, 16, 20]


@pytest.mark.parametrize(("choose", "sizes"), [(True, (2, 1, 1)), (False, (2, 0, 2))])
def test_rows_that_say_their_split_are_not_drawn(choose: bool, sizes: tuple[int, int, int]) -> None:
    splits: tuple[Split, ...] = ("train", "dev", "test", "train")
    rows = tuple(Example(f"{number}", "ab"[number % 2], None, split) for number, split in enumerate(splits))
    parts = partition(Dataset(rows, ("a", "b")), held_out=0.5, choose=choose, seed=0)
    assert tuple(map(len, parts)) == sizes
    assert {row.split for row in parts.train} == {"train"}


def test_of_numbers_a_share_of_all_rows_is_held_out() -> None:
    rows = tuple(Example(f"{number}", float(number)) for number in range(20))
    parts = partition(Dataset(rows, ("value",)), held_out=0.25, choose=True, seed=0)
    assert [len(part) for part in parts] == [11, 4, 5]
    assert sorted(row.label for part in parts for row in part) == [float(number) for number in range(20)]


def test_of_completions_a_share_of_all_rows_is_held_out() -> None:
    rows = tuple(Example("prompt", f"answer {number}") for number in range(20))
    parts = partition(Dataset(rows, (), completions=True), held_out=0.25, choose=False, seed=0)
    assert [len(part) for part in parts] == [15, 0, 5]
