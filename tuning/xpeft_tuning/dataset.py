"""Labelled texts: reading them from JSON lines, and what must be true of them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from xpeft_profiles.errors import shown

from .errors import DatasetInvalid
from .row_rules import COMPLETED, LABELLED, check_labels, number_fault, row_fault, wanted

Split = Literal["train", "dev", "test"]
Task = Literal["classify", "regress", "complete"]

VALUE = "value"
"""The one label of a head whose answers are numbers, unless another name is asked for."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text, or a pair of texts, and its label: a number for regression, the text that follows for completion.

    ``split`` None: whoever tunes decides what is held out.
    """

    text: str
    label: str | float
    text_pair: str | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Dataset:
    """At least one example, and the labels in the order in which the head will have them.

    Either every example says which split it belongs to, or none does; all are of one task.

    Args:
        labels: distinct; of numbers just one, which says what they are; of completions none.
        ignored: fields that rows have and nobody reads.
        completions: whether texts are prompts and labels their completions.
    """

    examples: tuple[Example, ...]
    labels: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    completions: bool = False

    @property
    def task(self) -> Task:
        return _task_of(self.examples[0], completions=self.completions)


def read_dataset(path: Path, labels: Sequence[str] | None = None) -> Dataset:
    """Read a file of ``{"text", "text_pair"?, "label", "split"?}``, one object a line; empty lines are skipped.

    With ``{"prompt", "completion", "split"?}`` the task is to complete prompts.

    A file whose name ends with ``.gz`` is unpacked.

    Raises: DatasetInvalid, naming the file and, for a row, its line, field and value.
    """
    return read_datasets(path, None, labels)[""]


def read_datasets(path: Path, by: str | None, labels: Sequence[str] | None = None) -> dict[str, Dataset]:
    """Read a file as `read_dataset` does, but a dataset for each value of the field ``by``, in order of appearance.

    Without ``labels`` each has those of its own rows. A whole number names a dataset by its digits.
    Raises: DatasetInvalid, for a text of the same digits too.
    """
    try:
        lines = _text(path).split("\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetInvalid(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except UnicodeDecodeError as error:
        raise DatasetInvalid(f"{path} is not UTF-8 at byte {error.start}") from None
    try:
        return parse_datasets(lines, by, labels)
    except DatasetInvalid as error:
        raise DatasetInvalid(f"{path}: {error}") from None


def parse_datasets(lines: Iterable[str], by: str | None, labels: Sequence[str] | None = None) -> dict[str, Dataset]:
    """See `read_datasets`; without ``by`` there is one, by the name "".

    Args:
        lines: JSON objects, the first of which is line 1.
        labels: the whole label set, in order; None takes the labels in the order of their first row. Where labels
            are numbers it is the one name for what they are.
    Raises: DatasetInvalid.
    """
    allowed = None if labels is None else dict.fromkeys(labels)
    rows: dict[str, list[Example]] = {}
    values: dict[str, str | int] = {}
    ignored: dict[str, None] = {}
    first: Example | None = None
    completions = False
    for number, row in _objects(lines):
        completions = completions if first else "completion" in row
        example = _parse_example(number, row, COMPLETED if completions else LABELLED)
        if first is None and labels is not None:
            check_labels(labels, _task_of(example, completions=completions))
        first = first or example
        if (fault := row_fault(example, first, allowed, completions=completions)) is not None:
            raise DatasetInvalid(f"line {number}: {fault.field} {fault.reason}")
        rows.setdefault("" if by is None else _group(number, by, row, values), []).append(example)
        read = (*COMPLETED, "split", by) if completions else (*LABELLED, "text_pair", "split", by)
        ignored.update(dict.fromkeys(field for field in row if field not in read))
    if not rows:
        raise DatasetInvalid("there are no rows")
    names = tuple(shown(field) for field in ignored)
    if completions:
        return {name: Dataset(tuple(some), (), names, completions=True) for name, some in rows.items()}
    return {name: Dataset(tuple(some), tuple(allowed or _labels_of(some)), names) for name, some in rows.items()}


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")


def _objects(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not empty."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetInvalid(f"line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DatasetInvalid(f"line {number} is {shown(row)}, it must be an object with text and label")
        yield number, row


def _parse_example(number: int, row: dict[str, Any], required: tuple[str, str]) -> Example:
    for field in required:
        if field not in row:
            raise DatasetInvalid(f"line {number} has no {field}")
    asked, answer = required
    label = row[answer]
    if answer == "label" and isinstance(label, int | float) and not isinstance(label, bool):
        if (reason := number_fault(label)) is not None:
            raise DatasetInvalid(f"line {number}: {answer} {reason}")
        label = float(label)
    else:
        _check_field(number, answer, label)
    pair = "text_pair" if answer == "label" else None
    for field in filter(None, (asked, pair, "split")):
        _check_field(number, field, row.get(field))
    return Example(row[asked], label, row.get(pair) if pair else None, row.get("split"))


def _task_of(example: Example, *, completions: bool) -> Task:
    if completions:
        return "complete"
    return "regress" if isinstance(example.label, float) else "classify"


def _labels_of(rows: Sequence[Example]) -> tuple[str, ...]:
    names = dict.fromkeys(row.label for row in rows)
    return (VALUE,) if isinstance(rows[0].label, float) else tuple(str(name) for name in names)


def _group(number: int, by: str, row: dict[str, Any], values: dict[str, str | int]) -> str:
    """Args: values: of the field by the groups' names, in the rows before."""
    if by not in row:
        raise DatasetInvalid(f"line {number} has no {by}")
    value = row[by]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _wrong(number, by, value, "a string that is not empty, or a whole number")
    name = str(value)
    _check_field(number, by, name)
    other = values.setdefault(name, value)
    if value != other:
        raise DatasetInvalid(
            f"line {number}: {by} is {shown(value)}, in a row before {shown(other)}; "
            "either it is a number in both or a text"
        )
    return name


def _check_field(number: int, field: str, value: Any) -> None:
    if value is None and field not in (*LABELLED, *COMPLETED):
        return
    if not isinstance(value, str) or not value:
        raise _wrong(number, field, value, "a string that is not empty")
    if not _is_unicode(value):
        raise _wrong(number, field, value, "valid Unicode, without lone surrogates")
    if field == "split" and value not in get_args(Split):
        raise _wrong(number, field, value, "train, dev or test")


def _wrong(number: int, field: str, value: Any, what: str) -> DatasetInvalid:
    return DatasetInvalid(f"line {number}: {field} {wanted(value, what)}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
