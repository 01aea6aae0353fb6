"""Which rows train, which choose the epoch, and which only measure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .dataset import Dataset, Example


class Partition(NamedTuple):
    """``train`` is learned from, ``dev`` chooses the epoch, ``held_out`` only measures."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    held_out: tuple[Example, ...]


def partition(dataset: Dataset, *, held_out: float, choose: bool, seed: int) -> Partition:
    """Part the rows by their own ``split``, or else by drawing.

    Args:
        held_out: share of each label's rows (of all rows, where labels are numbers or completions) that is drawn
            where rows have no split; at least one row of each label stays with train, so that few rows may leave
            nothing held out.
        choose: whether dev rows are needed. Without dev rows of its own the same share (a fifth where
            ``held_out`` is 0) of what is left is drawn; where they are not needed, dev rows are held out too.
        seed: of the draw.
    """
    train = [row for row in dataset.examples if row.split in (None, "train")]
    dev = [row for row in dataset.examples if row.split == "dev"]
    test = [row for row in dataset.examples if row.split == "test"]
    by_label = dataset.task == "classify"
    if dataset.examples[0].split is None:
        train, test = _draw(train, held_out, by_label, seed)
    if not choose:
        dev, test = [], dev + test
    elif not dev:
        train, dev = _draw(train, held_out or 0.2, by_label, seed + 1)
    return Partition(tuple(train), tuple(dev), tuple(test))


def _draw(rows: Sequence[Example], share: float, by_label: bool, seed: int) -> tuple[list[Example], list[Example]]:
    """Rows that stay and rows that are drawn, each in the order of the data; by label the share of every label."""
    generator = np.random.Generator(np.random.PCG64(seed))
    places = defaultdict(list)
    for place, row in enumerate(rows):
        places[row.label if by_label else ""].append(place)
    drawn: set[int] = set()
    for of_label in places.values():
        count = min(round(share * len(of_label)), len(of_label) - 1)
        drawn.update(generator.permutation(of_label)[:count].tolist())
    stay = [row for place, row in enumerate(rows) if place not in drawn]
    return stay, [row for place, row in enumerate(rows) if place in drawn]
