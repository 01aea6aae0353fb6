from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from xpeft_tuning.dataset import Dataset, Example, parse_datasets, read_dataset, read_datasets
from xpeft_tuning.errors import DatasetInvalid

GOOD = '{"text": "hello", "label": "a"}'
NUMBER = '{"text": "hello", "label": 0.5}'
PROMPT = '{"prompt": "one two", "completion": "three"}'


def _lines(*rows: dict[str, Any]) -> list[str]:
    return [json.dumps(row) for row in rows]


def _parsed(lines: list[str], labels: list[str] | None = None) -> Dataset:
    return parse_datasets(lines, None, labels)[""]


def _users(by: str, *values: object) -> dict[str, Dataset]:
    """A row a value, the number of the row for a label."""
    rows = ({"text": "x", "label": f"{place}", by: value} for place, value in enumerate(values))
    return parse_datasets(_lines(*rows), by)


def test_rows_are_read_with_labels_in_the_order_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "t", "label": "b", "text_pair": "p"}\n\n{"text": "ü", "label": "a", "text_pair": null}\n')
    dataset = read_dataset(path)
    assert dataset.examples == (Example("t", "b", "p"), Example("ü", "a"))
    assert dataset.labels == ("b", "a")


def test_given_labels_decide_the_order_and_may_be_more() -> None:
    assert _parsed([GOOD], ["c", "a"]).labels == ("c", "a")


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "one\u2028two\x85three", "label": "a"}, ensure_ascii=False) + "\r\n")
    assert read_dataset(path).examples[0].text == "one\u2028two\x85three"


def test_splits_are_read() -> None:
    rows = [f'{{"text": "x", "label": "a", "split": "{split}"}}' for split in ("train", "dev", "test")]
    assert [row.split for row in _parsed(rows).examples] == ["train", "dev", "test"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON: "),
        ("[]", "line 2 is [], it must be an object"),
        ('{"text": "x"}', "line 2 has no label"),
        ('{"label": "x"}', "line 2 has no text"),
        ('{"text": "x", "label": 1}', "line 2: label is 1.0; either all labels are numbers or none is"),
        ('{"text": "x", "label": true}', "line 2: label is True, it must be a string that is not empty"),
        ('{"text": "", "label": "a"}', "line 2: text is '', it must be a string"),
        ('{"text": "x", "label": null}', "line 2: label is None, it must be a string"),
        ('{"text": "x", "label": "a", "text_pair": ["y"]}', "line 2: text_pair is ['y'], it must be a string"),
        ('{"prompt": "x", "completion": "a"}', "line 2 has no text"),
        ('{"text": "x", "label": "a", "split": "eval"}', "line 2: split is 'eval', it must be train, dev or test"),
        ('{"text": "x", "label": "a", "split": "train"}', "line 2: split is 'train'; either every row has one or none"),
        ('{"text": "\\ud800", "label": "a"}', "line 2: text is '\\ud800', it must be valid Unicode"),
        ('{"text": "x", "label": "b"}', "line 2: label is 'b', it must be one of a, c"),
    ],
)
def test_a_bad_row_is_refused_with_its_line_field_and_value(line: str, message: str) -> None:
    with pytest.raises(DatasetInvalid) as refused:
        _parsed([GOOD, line], ["a", "c"])
    assert str(refused.value).startswith(message)


def test_a_label_that_no_profile_takes_is_refused_before_it_is_learnt() -> None:
    with pytest.raises(DatasetInvalid, match=r"^line 1: label is 'é.*, it must be of at most 1024 bytes"):
        _parsed(_lines({"text": "x", "label": "é" * 513}))
    _parsed(_lines({"text": "x", "label": "é" * 512}))


def test_a_huge_value_does_not_come_back_whole() -> None:
    with pytest.raises(DatasetInvalid) as refused:
        _parsed(_lines({"text": "x", "label": ["y" * 100_000]}))
    assert len(str(refused.value)) < 300


def test_fields_that_nobody_reads_are_named_once_in_order() -> None:
    rows = _lines({"text": "x", "label": "a", "when": 1, "who": 2}, {"text": "x", "label": "a", "where": 3, "who": 4})
    assert _parsed(rows).ignored == ("'when'", "'who'", "'where'")
    by_user = parse_datasets(rows, "who")
    assert [each.ignored for each in by_user.values()] == [("'when'", "'where'")] * 2
    assert _parsed(_lines({"text": "x", "label": "a", "text_pair": "y", "split": "dev"})).ignored == ()
    assert len(_parsed(_lines({"text": "x", "label": "a", "y" * 100_000: 1})).ignored[0]) < 100


def test_a_field_of_the_other_task_is_not_read() -> None:
    assert _parsed(_lines({"text": "x", "label": "a", "prompt": "p"})).ignored == ("'prompt'",)
    row = {"prompt": "x", "completion": "a", "text_pair": "p", "": "q"}
    assert _parsed(_lines(row)).ignored == ("'text_pair'", "''")
    assert _parsed(_lines(row)).examples == (Example("x", "a"),)


def test_numbers_are_labels_of_one_name() -> None:
    rows = [NUMBER, '{"text": "x", "label": 3, "text_pair": "p"}', '{"text": "x", "label": -65504}']
    dataset = _parsed(rows)
    assert [example.label for example in dataset.examples] == [0.5, 3.0, -65504.0]
    assert all(type(example.label) is float for example in dataset.examples)
    assert (dataset.task, dataset.labels) == ("regress", ("value",))
    assert _parsed(rows, ["stars"]).labels == ("stars",)
    assert _parsed([GOOD]).task == "classify"


@pytest.mark.parametrize(
    ("label", "shown"),
    [("NaN", "nan"), ("-Infinity", "-inf"), ("65505", "65505"), ("1" + 400 * "0", "1000")],
    ids=lambda text: text[:9],
)
def test_what_is_no_finite_number_of_float16_is_refused_with_its_line(label: str, shown: str) -> None:
    with pytest.raises(DatasetInvalid, match=r"^line 2: label is .*, it must be a number from -65504 to") as refused:
        _parsed([NUMBER, f'{{"text": "x", "label": {label}}}'])
    assert f"label is {shown}" in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(("first", "second", "shown"), [(GOOD, NUMBER, "0.5"), (NUMBER, GOOD, "'a'")])
def test_numbers_and_strings_mixed_are_refused_with_the_line(first: str, second: str, shown: str) -> None:
    with pytest.raises(DatasetInvalid, match=f"^line 4: label is {shown}; either all labels are numbers or none is"):
        _parsed([first, first, "", second])


def test_several_names_for_numbers_are_refused() -> None:
    with pytest.raises(DatasetInvalid, match="there are 2 labels, but the rows' are numbers"):
        _parsed([NUMBER], ["a", "b"])


def test_completions_have_no_labels() -> None:
    dataset = _parsed([PROMPT, PROMPT.replace("three", "four")])
    assert (dataset.task, dataset.labels) == ("complete", ())
    assert dataset.examples == (Example("one two", "three"), Example("one two", "four"))
    with pytest.raises(DatasetInvalid, match="but the rows have completions"):
        _parsed([PROMPT], ["a"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD, "line 2 has no prompt"),
        ('{"prompt": "x"}', "line 2 has no completion"),
        ('{"prompt": "x", "completion": 1}', "line 2: completion is 1, it must be a string that is not empty"),
        ('{"prompt": "", "completion": "y"}', "line 2: prompt is '', it must be a string that is not empty"),
    ],
)
def test_a_bad_completion_is_refused_with_its_line_and_field(line: str, message: str) -> None:
    with pytest.raises(DatasetInvalid) as refused:
        _parsed([PROMPT, line])
    assert str(refused.value).startswith(message)


def test_groups_come_in_order_of_appearance_with_labels_of_their_own() -> None:
    users = _users("user", "zoe", "abe", "zoe", "mia", "abe", "zoe")
    assert {name: dataset.labels for name, dataset in users.items()} == {
        "zoe": ("0", "2", "5"),
        "abe": ("1", "4"),
        "mia": ("3",),
    }
    assert list(users) == ["zoe", "abe", "mia"]


def test_given_labels_are_those_of_every_group() -> None:
    rows = _lines({"text": "x", "label": "a", "user": 1}, {"text": "x", "label": "b", "user": 2})
    assert {each.labels for each in parse_datasets(rows, "user", ["b", "a"]).values()} == {("b", "a")}


def test_a_whole_number_names_a_group() -> None:
    assert {name: len(each.examples) for name, each in _users("id", 7, -1, 7, 0).items()} == {"7": 2, "-1": 1, "0": 1}


@pytest.mark.parametrize(("first", "second"), [(7, "7"), ("7", 7)])
def test_a_number_and_a_text_that_name_one_group_are_refused_with_their_line(first: object, second: object) -> None:
    with pytest.raises(DatasetInvalid, match=f"^line 3: id is {second!r}, in a row before {first!r}; either"):
        _users("id", first, "ann", second)
    assert list(_users("id", first, "ann", 8)) == ["7", "ann", "8"]


@pytest.mark.parametrize("value", [True, 1.5, None, "", ["a"], {}])
def test_what_names_no_group_is_refused_with_its_line(value: object) -> None:
    with pytest.raises(DatasetInvalid, match=r"^line 2: user is .*, it must be a string that is not empty, or a whole"):
        _users("user", "ann", value)


def test_a_group_of_lone_surrogates_is_refused() -> None:
    with pytest.raises(DatasetInvalid, match=r"^line 1: user is .*ud800', it must be valid Unicode"):
        _users("user", "\ud800")


def test_a_row_without_the_groups_field_is_refused_with_its_line() -> None:
    with pytest.raises(DatasetInvalid, match="line 2 has no user"):
        parse_datasets(_lines({"text": "x", "label": "a", "user": "ann"}, {"text": "x", "label": "a"}), "user")


def test_a_packed_file_is_read_as_if_it_were_not(tmp_path: Path) -> None:
    rows = "\n".join(_lines(*({"text": "ü", "label": "ab"[n % 2], "user": n // 4} for n in range(12))))
    plain, packed = tmp_path / "data.jsonl", tmp_path / "data.jsonl.gz"
    plain.write_text(rows)
    packed.write_bytes(gzip.compress(rows.encode()))
    assert read_datasets(packed, "user") == read_datasets(plain, "user")
    assert read_dataset(packed).ignored == ("'user'",)


_PACKED = gzip.compress(GOOD.encode())


@pytest.mark.parametrize(
    "content",
    [GOOD.encode(), _PACKED[:-9], _PACKED[:10] + b"\x07" + _PACKED[11:], _PACKED[:-8] + b"12345678"],
    ids=["not packed", "cut", "damaged", "wrong sum"],
)
def test_a_damaged_packed_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetInvalid, match=r"data.jsonl.gz cannot be read: \w"):
        read_dataset(path)


@pytest.mark.parametrize(
    ("labels", "message"), [(["a", "a"], "labels name 'a' 2 times"), (["a", ""], "none of them may be empty")]
)
def test_bad_labels_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(DatasetInvalid, match=message):
        _parsed([GOOD], labels)


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


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\ufeff" + GOOD + "\n", encoding="utf-8")
    assert read_dataset(path) == _parsed([GOOD])


def test_a_line_that_is_nested_too_deep_is_named() -> None:
    with pytest.raises(DatasetInvalid, match="line 2 is not JSON: "):
        _parsed([GOOD, '{"text": ' + "[" * 200_000])
