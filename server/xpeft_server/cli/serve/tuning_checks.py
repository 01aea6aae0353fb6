"""Checks of a tuning job before it is accepted, as far as they are possible without the model."""

from __future__ import annotations

from typing import cast

import numpy as np

from xpeft_profiles import BankGeometry, Profile, ProfileInvalid, read_profile_file, write_profile_file
from xpeft_server.jobs.errors import InvalidTuning, TooManyRows
from xpeft_server.jobs.requests import TuningRequest
from xpeft_tuning.dataset import VALUE, Dataset, Example, Split
from xpeft_tuning.errors import DatasetInvalid, DataTooSmall, TuningSettingsInvalid
from xpeft_tuning.learnable import check_task, head_labels, learnable_parts
from xpeft_tuning.row_rules import check_labels, row_fault
from xpeft_tuning.settings import TuningSettings


def dataset_of(request: TuningRequest) -> Dataset:
    """The request's examples as tuning takes them."""
    examples = tuple(
        Example(row.text, row.label, row.text_pair, cast("Split | None", row.split)) for row in request.examples
    )
    if request.completions:
        return Dataset(examples, (), completions=True)
    if request.labels is not None:
        return Dataset(examples, request.labels)
    names = dict.fromkeys(row.label for row in examples)
    return Dataset(examples, (VALUE,) if isinstance(examples[0].label, float) else tuple(map(str, names)))


def check_examples(request: TuningRequest, most: int) -> Dataset:
    """Checks that need neither model nor bank. Raises: InvalidTuning, naming field and value."""
    count = len(request.examples)
    if not count:
        raise InvalidTuning("examples are empty: give at least one of each label, or one completion", param="examples")
    if count > most:
        raise TooManyRows(f"there are {count} examples, more than the {most} of one job", param="examples")
    dataset = dataset_of(request)
    allowed = None if request.labels is None else dict.fromkeys(request.labels)
    if request.labels is not None:
        try:
            check_labels(request.labels, dataset.task)
        except DatasetInvalid as error:
            raise InvalidTuning(str(error), param="labels") from None
    for number, row in enumerate(dataset.examples):
        fault = row_fault(row, dataset.examples[0], allowed, completions=dataset.completions)
        if fault is not None:
            where = f"examples[{number}].{fault.field}"
            raise InvalidTuning(f"{where} {fault.reason}", param=where)
    return dataset


class TuningChecks:
    """Called with a request. Raises: InvalidTuning, naming field and value.

    Args:
        geometry: of the bank that is served.
        generates: whether the model can learn completions.
        most_rows, max_profile_bytes: see the settings of the same meaning.
    """

    def __init__(self, geometry: BankGeometry, *, generates: bool, most_rows: int, max_profile_bytes: int) -> None:
        self._geometry = geometry
        self._generates = generates
        self._most_rows = most_rows
        self._max_profile_bytes = max_profile_bytes

    def __call__(self, request: TuningRequest) -> None:
        dataset = check_examples(request, self._most_rows)
        try:
            settings = TuningSettings(**request.settings)
            settings.check_fits(self._geometry.adapters, self._geometry.shared_heads)
            check_task(dataset, settings, generates=self._generates)
        except TuningSettingsInvalid as error:
            where = "settings" if error.setting is None else f"settings.{error.setting}"
            message = f"settings: {error}" if error.setting is None else f"settings.{error}"
            raise InvalidTuning(message, param=where) from None
        except DatasetInvalid as error:
            raise InvalidTuning(str(error), param="examples") from None
        shared = None if settings.shared_head is None else self._geometry.shared_heads[settings.shared_head]
        try:
            labels = head_labels(dataset, settings, shared)
            learnable_parts(dataset, labels, settings)
        except DatasetInvalid as error:
            raise InvalidTuning(str(error), param="labels") from None
        except DataTooSmall as error:
            raise InvalidTuning(str(error), param="examples") from None
        self._check_profile(settings, labels)

    def _check_profile(self, settings: TuningSettings, labels: tuple[str, ...]) -> None:
        """Pass a profile of the same shapes and labels through the checks of an upload."""
        geometry = self._geometry
        shape = (geometry.blocks, geometry.adapters)
        if settings.kind == "hard":
            mask = np.broadcast_to(np.arange(geometry.adapters) < settings.chosen(geometry.adapters), shape)
        else:
            mask = np.full(shape, 1 / geometry.adapters, np.float32)
        own = settings.has_own_head and len(labels) > 0  # completions have no labels
        try:
            profile = Profile(
                bank=geometry.fingerprint,
                mask_a=mask,
                mask_b=mask,
                ln_weight=np.ones((geometry.blocks, geometry.width), np.float16) if geometry.layer_norm else None,
                head_weight=np.zeros((len(labels), geometry.hidden), np.float16) if own else None,
                labels=labels if own else None,
                shared_head=None if own else settings.shared_head,
                description=settings.description,
            )
            read_profile_file(write_profile_file(profile), max_bytes=self._max_profile_bytes)
        except ProfileInvalid as error:
            raise InvalidTuning(f"the profile would be refused: {error.message}", param="labels") from None
