"""Labelled texts: reading them from JSON lines, and what must be true of them."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import DatasetInvalid

Split = Literal["train", "dev", "test"]

_REQUIRED = ("text", "label")
_FIELDS = (*_REQUIRED, "text_pair", "split")


@dataclass(frozen=True, slots=True)
class Example:
    """One text, or a pair of texts, and its label. ``split`` None: whoever tunes decides what is held out."""

    text: str
    label: str
    text_pair: str | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Dataset:
    """At least one example, and the labels in the order in which the head will have them.

    Either every example says which split it belongs to, or none does.
    """

    examples: tuple[Example, ...]
    labels: tuple[str, ...]


def read_dataset(path: Path, labels: Sequence[str] | None = None) -> Dataset:
    """Read a file of ``{"text", "text_pair"?, "label", "split"?}``, one object a line; empty lines are skipped.

    Raises: DatasetInvalid, naming the file and, for a row, its line, field and value.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DatasetInvalid(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DatasetInvalid(f"{path} is not UTF-8 at byte {error.start}") from None
    try:
        return parse_dataset(lines, labels)
    except DatasetInvalid as error:
        raise DatasetInvalid(f"{path}: {error}") from None


def parse_dataset(lines: Iterable[str], labels: Sequence[str] | None = None) -> Dataset:
    """See `read_dataset`.

    Args:
        lines: JSON objects, the first of which is line 1.
        labels: the whole label set, in order; None takes the labels in the order of their first row.
    Raises: DatasetInvalid.
    """
    wanted = None if labels is None else _checked_labels(labels)
    examples: list[Example] = []
    first: Example | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        example = _parse_example(number, line)
        if wanted is not None and example.label not in wanted:
            raise _wrong(number, "label", example.label, f"one of {', '.join(wanted)}")
        first = first or example
        if (first.split is None) is not (example.split is None):
            raise DatasetInvalid(f"line {number}: split is {example.split!r}; either every row has one or none does")
        examples.append(example)
    if not examples:
        raise DatasetInvalid("there are no rows")
    return Dataset(tuple(examples), wanted or tuple(dict.fromkeys(example.label for example in examples)))


def _parse_example(number: int, line: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DatasetInvalid(f"line {number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DatasetInvalid(f"line {number} is {_shown(row)}, it must be an object with text and label")
    for field in _REQUIRED:
        if field not in row:
            raise DatasetInvalid(f"line {number} has no {field}")
    for field, value in row.items():
        _check_field(number, field, value)
    return Example(row["text"], row["label"], row.get("text_pair"), row.get("split"))


def _check_field(number: int, field: str, value: Any) -> None:
    if field not in _FIELDS:
        raise DatasetInvalid(f"line {number}: unknown field {_shown(field)}, the fields are {', '.join(_FIELDS)}")
    if value is None and field not in _REQUIRED:
        return
    if not isinstance(value, str) or not value:
        raise _wrong(number, field, value, "a string that is not empty")
    if not _is_unicode(value):
        raise _wrong(number, field, value, "valid Unicode, without lone surrogates")
    if field == "split" and value not in get_args(Split):
        raise _wrong(number, field, value, "train, dev or test")


def _checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    if not labels or not all(labels):
        raise DatasetInvalid(f"labels are {_shown(list(labels))}, none of them may be empty")
    label, times = Counter(labels).most_common(1)[0]
    if times > 1:
        raise DatasetInvalid(f"labels name {_shown(label)} {times} times")
    return tuple(labels)


def _wrong(number: int, field: str, value: Any, wanted: str) -> DatasetInvalid:
    return DatasetInvalid(f"line {number}: {field} is {_shown(value)}, it must be {wanted}")


def _shown(value: object) -> str:
    short = reprlib.Repr()
    short.maxstring = 80
    return short.repr(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
