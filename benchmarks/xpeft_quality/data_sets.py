"""The data that quality is measured on: GLUE tasks, and users of whom some are kept from bank training."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from xpeft_tuning.dataset import Dataset, Example, Split, read_datasets

Metric = Literal["accuracy", "matthews"]


@dataclass(frozen=True)
class TaskSet:
    """One task: train rows teach, the task's dev rows measure (as split ``test``)."""

    name: str
    metric: Metric
    dataset: Dataset


@dataclass(frozen=True)
class UserSet:
    """Many users' rows; ``unseen`` ones have no row in bank training, and their test rows measure.

    Of the others' rows nothing measures but those of split dev, in bank training itself: test rows teach there, too.
    """

    name: str
    seen: dict[str, Dataset]
    unseen: dict[str, Dataset]


_GLUE: dict[str, Metric] = {"SST-2": "accuracy", "CoLA": "matthews", "MRPC": "accuracy", "RTE": "accuracy"}
_USERS = {"critics": ("fresh", "rotten"), "movielens_like": ("like", "dislike")}
_UNSEEN = {"critics": 200, "movielens_like": 75}

SETS = (*_GLUE, *_USERS)


def read_set(name: str, folder: Path) -> TaskSet | UserSet:
    """Args: name: one of `SETS`; folder: with ``glue/`` and ``personal/``."""
    if name in _GLUE:
        rows = [
            *_glue(folder / "glue" / name / "train.tsv", "train"),
            *_glue(folder / "glue" / name / "dev.tsv", "test"),
        ]
        return TaskSet(name, _GLUE[name], Dataset(tuple(rows), tuple(sorted({str(row.label) for row in rows}))))
    users = read_datasets(folder / "personal" / f"{name}.jsonl.gz", "user", _USERS[name])
    # Which users are unseen never changes with a seed: bank training and every method part them alike.
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(users))
    names = [list(users)[place] for place in order]
    unseen = names[: _UNSEEN[name]]
    seen = names[_UNSEEN[name] :][:600]
    return UserSet(name, {each: _teaching(users[each]) for each in seen}, {each: users[each] for each in unseen})


def _teaching(dataset: Dataset) -> Dataset:
    """Test rows as train rows."""
    rows = [replace(row, split="train") if row.split == "test" else row for row in dataset.examples]
    return replace(dataset, examples=tuple(rows))


def _glue(path: Path, split: Split) -> list[Example]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    first = "sentence" if "sentence" in rows[0] else "sentence1"
    return [Example(row[first], row["label"], row.get("sentence2"), split) for row in rows]
