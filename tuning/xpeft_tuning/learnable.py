"""Whether a profile can be learned from its rows, and the labels of its head; checked without a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .dataset import Dataset, Example
from .errors import DatasetInvalid, DataTooSmall, TuningSettingsInvalid
from .partition import Partition, partition
from .settings import TuningSettings


def check_task(dataset: Dataset, settings: TuningSettings, *, generates: bool) -> None:
    """Args: generates: whether the model has a language-model head.

    Raises: TuningSettingsInvalid for a setting that does not go with what is learned; DatasetInvalid for completions
        that the model cannot learn.
    """
    if dataset.task == "classify":
        return
    if settings.stop_on == "accuracy":
        message = f"stop_on is 'accuracy', but the task is to {dataset.task}: it must be loss or none"
        raise TuningSettingsInvalid(message, "stop_on")
    if settings.class_weights is not None:
        message = f"class_weights is {settings.class_weights!r}, but the task is to {dataset.task}: it must be none"
        raise TuningSettingsInvalid(message, "class_weights")
    if dataset.completions and not generates:
        raise DatasetInvalid("the rows have completions, and the model has no language-model head to learn them with")
    if dataset.completions and settings.shared_head is not None:
        message = f"shared_head is {settings.shared_head!r}, but the rows have completions, not labels"
        raise TuningSettingsInvalid(message, "shared_head")


def learnable_parts(dataset: Dataset, labels: tuple[str, ...], settings: TuningSettings) -> Partition:
    """The rows as tuning parts them. Args: labels: of the profile's head, see `head_labels`.

    Raises: DataTooSmall if there is nothing to learn from them, or to choose an epoch by where that is asked for.
    """
    parts = partition(dataset, held_out=settings.held_out, choose=settings.stop_on is not None, seed=settings.seed)
    if not parts.train:
        raise DataTooSmall("there are no train rows")
    if dataset.task != "complete":
        learned = labels if dataset.task == "classify" and settings.shared_head is None else ()
        check_train_labels(parts.train, learned, "tuning")
    if settings.stop_on is not None and not parts.dev:
        raise DataTooSmall(f"stop_on is {settings.stop_on!r}, but no label has rows enough to choose an epoch by")
    return parts


def head_labels(dataset: Dataset, settings: TuningSettings, shared: tuple[str, ...] | None) -> tuple[str, ...]:
    """The labels that the profile's head has. Args: shared: those of the bank's head, where one is named.

    Raises: DatasetInvalid for a label that a shared head lacks, and for numbers where it has several labels.
    """
    if shared is None:
        return dataset.labels
    if dataset.task == "regress" and len(shared) > 1:
        raise DatasetInvalid(
            f"the labels are numbers, but shared head {settings.shared_head!r} has {len(shared)} labels, not one"
        )
    for label in dataset.labels:
        if label not in shared:
            there = ", ".join(shared)
            raise DatasetInvalid(f"label {label!r} is not one of shared head {settings.shared_head!r} ({there})")
    return shared


def check_train_labels(rows: Iterable[Example], labels: Sequence[str], what: str) -> None:
    """Args: rows: one at least; labels: that they must have; what: they are for, in the message.

    Raises: DataTooSmall unless the rows have two labels at least, and all of ``labels``.
    """
    seen = {row.label for row in rows}
    if len(seen) < 2:
        raise DataTooSmall(f"the train rows have 1 label ({seen.pop()!r}): {what} needs two at least")
    for label in labels:
        if label not in seen:
            raise DataTooSmall(f"label {label!r} has no train row to learn it from")
