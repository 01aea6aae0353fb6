"""Rules for rows and their labels, from a file or a tuning job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from xpeft_profiles.errors import shown
from xpeft_profiles.halves import FLOAT16_MAX
from xpeft_profiles.texts import LABEL_BYTES

from .errors import DatasetInvalid

if TYPE_CHECKING:
    from .dataset import Example, Task

LABELLED: Final = ("text", "label")
"""What a row calls its text and what is learned of it."""
COMPLETED: Final = ("prompt", "completion")

_NUMBERS: Final = f"a number from -{FLOAT16_MAX:g} to {FLOAT16_MAX:g}, as a profile's head is float16"


class RowFault(NamedTuple):
    """What is wrong with a row: ``reason`` goes on where a message has named row and field."""

    field: str
    reason: str


def row_fault(row: Example, first: Example, labels: Collection[str] | None, *, completions: bool) -> RowFault | None:
    """Args: first: of all rows; labels: that a row may have, None for any; completions: of all rows."""
    text, label = COMPLETED if completions else LABELLED
    for field, value in ((text, row.text), (label, row.label), ("text_pair", row.text_pair)):
        if value == "":
            return RowFault(field, wanted(value, "a string that is not empty"))
    if isinstance(row.label, float) is not isinstance(first.label, float):
        return RowFault(label, f"is {shown(row.label)}; either all labels are numbers or none is")
    if isinstance(row.label, float):
        if (reason := number_fault(row.label)) is not None:
            return RowFault(label, reason)
    elif not completions and len(row.label.encode()) > LABEL_BYTES:
        return RowFault(label, wanted(row.label, f"of at most {LABEL_BYTES} bytes"))
    elif labels is not None and row.label not in labels:
        return RowFault(label, wanted(row.label, f"one of {', '.join(labels)}"))
    if (row.split is None) is not (first.split is None):
        return RowFault("split", f"is {row.split!r}; either every row has one or none does")
    return None


def number_fault(label: float) -> str | None:
    """The reason why this is no label."""
    return None if abs(label) <= FLOAT16_MAX else wanted(label, _NUMBERS)


def wanted(value: object, what: str) -> str:
    """A reason."""
    return f"is {shown(value)}, it must be {what}"


def check_labels(labels: Sequence[str], task: Task) -> None:
    """Raises: DatasetInvalid if these cannot be all labels that rows of this task may have, in their order."""
    if task == "complete":
        raise DatasetInvalid(f"labels are {shown(list(labels))}, but the rows have completions")
    if not labels or not all(labels):
        raise DatasetInvalid(f"labels are {shown(list(labels))}, none of them may be empty")
    label, times = Counter(labels).most_common(1)[0]
    if times > 1:
        raise DatasetInvalid(f"labels name {shown(label)} {times} times")
    if task == "regress" and len(labels) > 1:
        raise DatasetInvalid(f"there are {len(labels)} labels, but the rows' are numbers: give one name")
