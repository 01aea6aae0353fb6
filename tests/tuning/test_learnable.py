from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xpeft_tuning.dataset import Dataset, Example, Split
from xpeft_tuning.errors import DatasetInvalid, DataTooSmall
from xpeft_tuning.learnable import head_labels, learnable_parts
from xpeft_tuning.settings import TuningSettings


def _counted(*counts: int, split: Split | None = None) -> Dataset:
    labels = tuple(f"l{number}" for number in range(len(counts)))
    rows = [
        Example(f"w{number}", labels[number], None, split) for number, count in enumerate(counts) for _ in range(count)
    ]
    return Dataset(tuple(rows), labels)


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (_counted(3), {}, r"the train rows have 1 label \('l0'\): tuning needs two at least"),
        (replace(_counted(3, 3), labels=("l0", "l1", "l2")), {}, "label 'l2' has no train row to learn it from"),
        (_counted(3, 3, split="test"), {}, "there are no train rows"),
        (_counted(1, 1), {"stop_on": "loss"}, "stop_on is 'loss', but no label has rows enough to choose an epoch by"),
        (Dataset((Example("w1", 0.5), Example("w2", 0.5)), ("value",)), {}, r"the train rows have 1 label \(0.5\)"),
    ],
)
def test_what_cannot_be_learned_is_refused(dataset: Dataset, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataTooSmall, match=message):
        learnable_parts(dataset, dataset.labels, TuningSettings(**settings))


def test_a_shared_head_needs_two_labels_and_no_more() -> None:
    settings = TuningSettings(shared_head="x", held_out=0.0)
    parts = learnable_parts(_counted(2, 2), ("l0", "l1", "l2"), settings)
    assert [len(part) for part in parts] == [4, 0, 0]
    with pytest.raises(DataTooSmall, match="the train rows have 1 label"):
        learnable_parts(_counted(2), ("l0", "l1", "l2"), settings)


def test_one_completion_is_enough() -> None:
    answer = Dataset((Example("w1 w2", "w3"),), (), completions=True)
    assert [len(part) for part in learnable_parts(answer, (), TuningSettings())] == [1, 0, 0]


def test_dev_rows_are_drawn_only_where_they_choose() -> None:
    drawn = [
        [len(part) for part in learnable_parts(_counted(10, 10), ("l0", "l1"), TuningSettings(stop_on=stop_on))]
        for stop_on in (None, "loss")
    ]
    assert drawn == [[16, 0, 4], [12, 4, 4]]


def test_a_head_has_the_labels_of_its_data_or_of_the_shared_head() -> None:
    settings = TuningSettings(shared_head="x")
    assert head_labels(_counted(2, 2), settings, None) == ("l0", "l1")
    assert head_labels(_counted(2, 2), settings, ("l1", "l9", "l0")) == ("l1", "l9", "l0")
    with pytest.raises(DatasetInvalid, match=r"label 'l1' is not one of shared head 'x' \(l0, l9\)"):
        head_labels(_counted(2, 2), settings, ("l0", "l9"))


def test_numbers_fit_a_shared_head_of_one_label_only() -> None:
    numbers = Dataset((Example("w1", 0.5), Example("w2", 1.0)), ("stars",))
    assert head_labels(numbers, TuningSettings(shared_head="x"), ("stars",)) == ("stars",)
    with pytest.raises(DatasetInvalid, match="labels are numbers, but shared head 'x' has 2 labels"):
        head_labels(numbers, TuningSettings(shared_head="x"), ("stars", "moons"))
