"""Whose rows a bank learns from, and which rows only measure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from xpeft_server.model.plm import Plm

from ..dataset import Dataset, Example
from ..errors import DatasetInvalid, DataTooSmall
from ..labelled_texts import LabelledTexts
from ..learnable import check_train_labels
from ..partition import partition


@dataclass(frozen=True)
class TrainingRows:
    """Rows of U users, or of all as one, tokenised.

    Args:
        labels: C labels of the head, each of which some train row has; one where they are numbers.
        train: of each user, none empty: rows without a split, or whose split is train.
        held_out: of the same users, dev and test rows; maybe none.
        skipped: users that are left out because they have no train row.
        sha256: hex digest of all users' train rows.
    """

    labels: tuple[str, ...]
    train: tuple[LabelledTexts, ...]
    held_out: tuple[LabelledTexts, ...]
    skipped: int
    sha256: str

    @classmethod
    def of(cls, plm: Plm, datasets: Mapping[str, Dataset]) -> TrainingRows:
        """Args: datasets: of each user, all with the same labels in the same order.

        Raises: DatasetInvalid for completions, or labels that differ; DataTooSmall if there is nothing to learn.
        """
        _check_alike(datasets)
        parts = [partition(each, held_out=0.0, choose=False, seed=0) for each in datasets.values()]
        kept = [each for each in parts if each.train]
        if not kept:
            raise DataTooSmall("there are no train rows")
        first = next(iter(datasets.values()))
        labels = first.labels
        rows = (row for each in kept for row in each.train)
        check_train_labels(rows, labels if first.task == "classify" else (), "training a bank")

        def texts(rows: Sequence[Example]) -> LabelledTexts:
            return LabelledTexts(plm, rows, labels, completions=False)

        return cls(
            labels=labels,
            train=tuple(texts(each.train) for each in kept),
            held_out=tuple(texts(each.held_out) for each in kept),
            skipped=len(parts) - len(kept),
            sha256=_sha256([each.train for each in kept]),
        )

    def of_users(self, places: Sequence[int]) -> TrainingRows:
        """Of some of the users alone, with the labels of all."""
        train, held_out = (tuple(every[place] for place in places) for every in (self.train, self.held_out))
        return replace(self, train=train, held_out=held_out, skipped=0)

    @property
    def rows(self) -> int:
        """To learn from."""
        return sum(map(len, self.train))

    @property
    def cut(self) -> int:
        """Texts that were longer than the model takes and were cut."""
        return sum(each.cut for each in (*self.train, *self.held_out))


def with_all_labels(datasets: Mapping[str, Dataset], order: Sequence[str] = ()) -> dict[str, Dataset]:
    """Every dataset with the labels of all: as ``order`` has them, if it has just these, else as rows bring them."""
    found = dict.fromkeys(label for each in datasets.values() for label in each.labels)
    labels = tuple(order) if found.keys() == {*order} else tuple(found)
    return {name: replace(each, labels=labels) for name, each in datasets.items()}


def _check_alike(datasets: Mapping[str, Dataset]) -> None:
    first = next(iter(datasets.values()), None)
    for name, each in datasets.items():
        if each.completions:
            raise DatasetInvalid('the rows have completions: a bank is trained on labelled texts, {"text", "label"}')
        if first is not None and (each.labels, each.task) != (first.labels, first.task):
            raise DatasetInvalid(
                f"{name!r} has the labels {each.labels} to {each.task}, the first has {first.labels} to {first.task}:"
                " all must have the same, in the same order"
            )


def _sha256(users: Sequence[Sequence[Example]]) -> str:
    """Of a line of JSON a row: the user's place among those that have train rows, text, second text and label."""
    found = hashlib.sha256()
    for user, rows in enumerate(users):
        for row in rows:
            found.update(json.dumps([user, row.text, row.text_pair, row.label]).encode("ascii") + b"\n")
    return found.hexdigest()
