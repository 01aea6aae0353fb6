"""What must be true of the examples, whatever model and bank there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from xpeft_profiles.errors import shown
from xpeft_profiles.halves import FLOAT16_MAX

from .errors import InvalidTuning, TooManyRows
from .requests import TuningExample, TuningRequest

_LABELLED: Final = {"text": "text", "label": "label", "text_pair": "text_pair"}
_COMPLETED: Final = {"text": "prompt", "label": "completion"}


def check_examples(request: TuningRequest, most: int) -> None:
    """Raises: InvalidTuning, naming field and value."""
    rows = request.examples
    if not rows:
        raise InvalidTuning("examples are empty: give at least one of each label, or one completion", param="examples")
    if len(rows) > most:
        raise TooManyRows(f"there are {len(rows)} examples, more than the {most} of one job", param="examples")
    names = _COMPLETED if request.completions else _LABELLED
    for number, row in enumerate(rows):
        _check_example(number, row, rows[0], names)
    if request.labels is None:
        return
    if request.completions:
        raise InvalidTuning(
            f"labels are {shown(list(request.labels))}, but the examples have completions", param="labels"
        )
    _check_labels(request.labels, rows)


def _check_example(number: int, row: TuningExample, first: TuningExample, names: Mapping[str, str]) -> None:
    for field, name in names.items():
        if getattr(row, field) == "":
            raise _wrong(number, name, "is empty")
    if isinstance(row.label, float) is not isinstance(first.label, float):
        raise _wrong(number, "label", f"is {shown(row.label)}; either all labels are numbers or none is")
    if isinstance(row.label, float) and not abs(row.label) <= FLOAT16_MAX:
        raise _wrong(number, "label", f"is {row.label}, it must be a number from -{FLOAT16_MAX} to {FLOAT16_MAX}")
    if (row.split is None) is not (first.split is None):
        raise _wrong(number, "split", f"is {row.split!r}; either every example has a split or none does")


def _check_labels(labels: tuple[str, ...], rows: tuple[TuningExample, ...]) -> None:
    if not labels or not all(labels):
        raise InvalidTuning(f"labels are {shown(list(labels))}, none of them may be empty", param="labels")
    label, times = Counter(labels).most_common(1)[0]
    if times > 1:
        raise InvalidTuning(f"labels name {shown(label)} {times} times", param="labels")
    if isinstance(rows[0].label, float):
        if len(labels) > 1:
            raise InvalidTuning(f"there are {len(labels)} labels, but they are numbers: give one name", param="labels")
        return
    there = frozenset(labels)
    for number, row in enumerate(rows):
        if row.label not in there:
            raise _wrong(number, "label", f"is {shown(row.label)}, which is none of labels")


def _wrong(number: int, field: str, reason: str) -> InvalidTuning:
    where = f"examples[{number}].{field}"
    return InvalidTuning(f"{where} {reason}", param=where)
