from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from xpeft_server.model.plm import Plm
from xpeft_tuning.bank_training.training_rows import TrainingRows, with_all_labels
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.errors import DatasetInvalid, DataTooSmall

LABELS = ("a", "b")
ALICE = Dataset(
    (Example("w1", "a", None, "train"), Example("w2", "b", "w3", "train"), Example("w4", "a", None, "test")), LABELS
)
BOB = Dataset((Example("w5", "b", None, "train"), Example("w6", "b", None, "dev")), LABELS)
GUEST = Dataset((Example("w7", "a", None, "dev"), Example("w8", "b", None, "test")), LABELS)


def test_train_rows_teach_and_dev_and_test_rows_only_measure(plm: Plm) -> None:
    rows = TrainingRows.of(plm, {"alice": ALICE, "bob": BOB})
    assert [each.targets.tolist() for each in rows.train] == [[0, 1], [1]]
    assert [each.targets.tolist() for each in rows.held_out] == [[0], [1]]
    assert (rows.labels, rows.rows, rows.skipped, rows.cut) == (LABELS, 3, 0, 0)


def test_rows_without_a_split_all_teach(plm: Plm, make_dataset: Callable[..., Dataset]) -> None:
    rows = TrainingRows.of(plm, {"": make_dataset(9)})
    assert (len(rows.train[0]), len(rows.held_out[0])) == (9, 0)


def test_a_user_without_train_rows_is_left_out_and_counted(plm: Plm) -> None:
    rows = TrainingRows.of(plm, {"guest": GUEST, "alice": ALICE, "other": GUEST})
    assert rows.skipped == 2
    assert [len(each) for each in rows.train] == [2]
    assert [len(each) for each in rows.held_out] == [1]


def test_texts_beyond_the_models_length_are_cut_and_counted(plm: Plm) -> None:
    long = Dataset(
        (*ALICE.examples, Example("w1 " * 100, "a", None, "train"), Example("w1 " * 99, "a", None, "test")), LABELS
    )
    assert TrainingRows.of(plm, {"": long}).cut == 2


def test_the_digest_is_that_of_a_line_of_json_for_each_train_row(plm: Plm) -> None:
    lines = [[0, "w1", None, "a"], [0, "w2", "w3", "b"], [1, "w5", None, "b"]]
    wanted = hashlib.sha256("".join(json.dumps(line) + "\n" for line in lines).encode()).hexdigest()
    assert TrainingRows.of(plm, {"alice": ALICE, "guest": GUEST, "bob": BOB}).sha256 == wanted


@pytest.mark.parametrize(
    "changed",
    [
        {"alice": ALICE},
        {"bob": BOB, "alice": ALICE},
        {"alice": replace(ALICE, examples=(*ALICE.examples, *BOB.examples))},
        {"alice": ALICE, "bob": replace(BOB, examples=(Example("w5", "a", None, "train"), BOB.examples[1]))},
        {"alice": ALICE, "bob": replace(BOB, examples=(Example("w5", "b", "w5", "train"), BOB.examples[1]))},
    ],
)
def test_other_train_rows_or_owners_give_another_digest(plm: Plm, changed: dict[str, Dataset]) -> None:
    before = TrainingRows.of(plm, {"alice": ALICE, "bob": BOB}).sha256
    assert TrainingRows.of(plm, changed).sha256 != before


def test_names_and_held_out_rows_are_no_part_of_the_digest(plm: Plm) -> None:
    renamed = {"A": ALICE, "B": replace(BOB, examples=(BOB.examples[0], Example("w9", "a", None, "dev")))}
    assert TrainingRows.of(plm, renamed).sha256 == TrainingRows.of(plm, {"alice": ALICE, "bob": BOB}).sha256


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({}, "there are no train rows"),
        ({"guest": GUEST}, "there are no train rows"),
        ({"bob": BOB}, r"the train rows have 1 label \('b'\): training a bank needs two at least"),
        ({"": replace(ALICE, labels=("a", "b", "c"))}, "label 'c' has no train row to learn it from"),
        (
            {"": Dataset((Example("w1", 0.5), Example("w2", 0.5)), ("value",))},
            r"the train rows have 1 label \(0.5\): training a bank needs two at least",
        ),
    ],
)
def test_rows_that_tell_nothing_apart_are_refused(plm: Plm, datasets: dict[str, Dataset], message: str) -> None:
    with pytest.raises(DataTooSmall, match=message):
        TrainingRows.of(plm, datasets)


def test_users_with_other_labels_or_another_task_are_refused_by_name(plm: Plm) -> None:
    with pytest.raises(DatasetInvalid, match=r"'bob' has the labels \('b', 'a'\) to classify, the first has \('a', 'b"):
        TrainingRows.of(plm, {"alice": ALICE, "bob": replace(BOB, labels=("b", "a"))})
    numbers = Dataset((Example("w1", 0.5), Example("w2", 0.7)), ("value",))
    with pytest.raises(DatasetInvalid, match=r"'bob' has the labels \('value',\) to regress"):
        TrainingRows.of(plm, {"alice": ALICE, "bob": numbers})


def test_completions_are_refused(plm: Plm) -> None:
    dataset = Dataset((Example("w1", "w2"),), (), completions=True)
    with pytest.raises(DatasetInvalid, match="the rows have completions: a bank is trained on labelled texts"):
        TrainingRows.of(plm, {"": dataset})


def test_all_users_get_the_labels_of_all_in_one_order() -> None:
    first, second = (Dataset((Example("w1", label),), (label, "both")) for label in ("z", "a"))
    united = with_all_labels({"1": first, "2": second})
    assert [each.labels for each in united.values()] == [("z", "both", "a")] * 2
    assert [each.examples for each in united.values()] == [first.examples, second.examples]
