from __future__ import annotations

import json
from pathlib import Path

import pytest

from xpeft_tuning.dataset import Example, parse_dataset, read_dataset
from xpeft_tuning.errors import DatasetInvalid

GOOD = '{"text": "hello", "label": "a"}'


def test_rows_are_read_with_labels_in_the_order_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "t", "label": "b", "text_pair": "p"}\n\n{"text": "ü", "label": "a", "text_pair": null}\n')
    dataset = read_dataset(path)
    assert dataset.examples == (Example("t", "b", "p"), Example("ü", "a"))
    assert dataset.labels == ("b", "a")


def test_given_labels_decide_the_order_and_may_be_more() -> None:
    assert parse_dataset([GOOD], ["c", "a"]).labels == ("c", "a")


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two\x85three", "label": "a"}, ensure_ascii=False) + "\r\n")
    assert read_dataset(path).examples[0].text == "one\u2028two\x85three"


def test_splits_are_read() -> None:
    rows = [f'{{"text": "x", "label": "a", "split": "{split}"}}' for split in ("train", "dev", "test")]
    assert [row.split for row in parse_dataset(rows).examples] == ["train", "dev", "test"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON: "),
        ("[]", "line 2 is [], it must be an object"),
        ('{"text": "x"}', "line 2 has no label"),
        ('{"label": "x"}', "line 2 has no text"),
        ('{"text": "x", "label": 1}', "line 2: label is 1, it must be a string that is not empty"),
        ('{"text": "", "label": "a"}', "line 2: text is '', it must be a string"),
        ('{"text": "x", "label": null}', "line 2: label is None, it must be a string"),
        ('{"text": "x", "label": "a", "text_pair": ["y"]}', "line 2: text_pair is ['y'], it must be a string"),
        ('{"text": "x", "label": "a", "lable": "b"}', "line 2: unknown field 'lable', the fields are text, label"),
        ('{"text": "x", "label": "a", "split": "eval"}', "line 2: split is 'eval', it must be train, dev or test"),
        ('{"text": "x", "label": "a", "split": "train"}', "line 2: split is 'train'; either every row has one or none"),
        ('{"text": "\\ud800", "label": "a"}', "line 2: text is '\\ud800', it must be valid Unicode"),
        ('{"text": "x", "label": "b"}', "line 2: label is 'b', it must be one of a, c"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_field_and_value(line: str, message: str) -> None:
    with pytest.raises(DatasetInvalid) as refused:
        parse_dataset([GOOD, line], ["a", "c"])
    assert str(refused.value).startswith(message)


def test_a_huge_value_does_not_come_back_whole() -> None:
    with pytest.raises(DatasetInvalid) as refused:
        parse_dataset([json.dumps({"text": "x", "label": "a", "y" * 100_000: 1})])
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("labels", "message"), [(["a", "a"], "labels name 'a' 2 times"), (["a", ""], "none of them may be empty")]
)
def test_bad_labels_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(DatasetInvalid, match=message):
        parse_dataset([GOOD], labels)


def test_a_file_without_rows_that_is_missing_or_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with pytest.raises(DatasetInvalid, match=r"data.jsonl cannot be read: No such file"):
        read_dataset(path)
    path.write_bytes(b"\n \n")
    with pytest.raises(DatasetInvalid, match=r"data.jsonl: there are no rows"):
        read_dataset(path)
    path.write_bytes(b"ab\xff")
    with pytest.raises(DatasetInvalid, match=r"data.jsonl is not UTF-8 at byte 2"):
        read_dataset(path)
