"""The three desks of examples/ are what the demo and its README say of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

DESKS = {
    "airline": {"booking", "baggage", "delay", "refund", "checkin"},
    "bank": {"card", "transfer", "loan", "fraud"},
    "clinic": {"appointment", "prescription", "results", "billing", "insurance", "urgent"},
}
Row = dict[str, str]


@pytest.fixture
def desks(project_root: Path) -> dict[str, list[Row]]:
    return {desk: _rows(project_root / "examples" / f"{desk}.jsonl") for desk in DESKS}


@pytest.fixture
def shared(project_root: Path) -> list[Row]:
    return _rows(project_root / "examples" / "shared.jsonl")


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("desk", DESKS)
def test_a_desk_has_at_least_ninety_rows_of_text_label_and_split(desks: dict[str, list[Row]], desk: str) -> None:
    assert len(desks[desk]) >= 90
    for row in desks[desk]:
        assert row.keys() == {"text", "label", "split"}, row
        assert row["text"] == row["text"].strip() != "", row


@pytest.mark.parametrize("desk", DESKS)
def test_every_label_of_a_desk_has_as_many_messages_and_a_fifth_is_held_out(
    desks: dict[str, list[Row]], desk: str
) -> None:
    counts = Counter((row["label"], row["split"]) for row in desks[desk])
    assert {label for label, _ in counts} == DESKS[desk]
    assert {count for (_, split), count in counts.items() if split == "train"} == {20}
    assert {count for (_, split), count in counts.items() if split == "test"} == {5}


def test_no_two_desks_have_a_label_or_a_number_of_labels_in_common(desks: dict[str, list[Row]]) -> None:
    labels = [{row["label"] for row in rows} for rows in desks.values()]
    assert len(set().union(*labels)) == sum(map(len, labels))
    assert len({len(names) for names in labels}) == len(labels)


def test_no_message_is_there_twice(desks: dict[str, list[Row]], shared: list[Row]) -> None:
    texts = [_words(row["text"]) for rows in [*desks.values(), shared] for row in rows]
    assert [words for words, count in Counter(texts).items() if count > 1] == []


@pytest.mark.parametrize("desk", DESKS)
def test_no_held_out_message_is_a_train_message_in_other_words(desks: dict[str, list[Row]], desk: str) -> None:
    train = [row["text"] for row in desks[desk] if row["split"] == "train"]
    held_out = [row["text"] for row in desks[desk] if row["split"] == "test"]
    alike = [(a, b) for a in held_out for b in train if len(_words(a) & _words(b)) > 0.5 * len(_words(a) | _words(b))]
    assert alike == []


def test_the_shared_messages_have_no_label(shared: list[Row]) -> None:
    assert 3 <= len(shared) <= 4
    assert all(row.keys() == {"text"} for row in shared)


def test_the_readme_names_every_file_and_label(project_root: Path) -> None:
    readme = (project_root / "examples" / "README.md").read_text(encoding="utf-8")
    for path in (project_root / "examples").glob("*.jsonl"):
        assert f"`{path.name}`" in readme
    for labels in DESKS.values():
        assert all(label in readme for label in labels)
