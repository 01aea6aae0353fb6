"""Whether a tuning job can succeed, as far as that shows without the model: asked before it is accepted."""

from __future__ import annotations

from typing import cast

import numpy as np

from xpeft_profiles import BankGeometry, Profile, ProfileInvalid, read_profile_file, write_profile_file
from xpeft_server.jobs.errors import InvalidTuning
from xpeft_server.jobs.request_checks import check_examples
from xpeft_server.jobs.requests import TuningRequest
from xpeft_tuning.dataset import VALUE, Dataset, Example, Split
from xpeft_tuning.errors import DatasetInvalid, DataTooSmall, TuningSettingsInvalid
from xpeft_tuning.learnable import head_labels, learnable_parts
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
        check_examples(request, self._most_rows)
        settings = self._settings(request)
        dataset = dataset_of(request)
        self._check_task(dataset, settings)
        shared = None if settings.shared_head is None else self._geometry.shared_heads[settings.shared_head]
        try:
            labels = head_labels(dataset, settings, shared)
            learnable_parts(dataset, labels, settings)
        except DatasetInvalid as error:
            raise InvalidTuning(str(error), param="labels") from None
        except DataTooSmall as error:
            raise InvalidTuning(str(error), param="examples") from None
        self._check_profile(settings, labels)

    def _check_task(self, dataset: Dataset, settings: TuningSettings) -> None:
        what = "the labels are numbers" if dataset.task == "regress" else "the examples have completions"
        if dataset.task != "classify" and settings.stop_on == "accuracy":
            raise _wrong_setting("stop_on", "accuracy", f"{what}: it must be loss or none")
        if dataset.task != "classify" and settings.class_weights is not None:
            raise _wrong_setting("class_weights", settings.class_weights, f"{what}: it must be none")
        if not dataset.completions:
            return
        if not self._generates:
            message = "the examples have completions, which this server's model cannot learn: it does not generate text"
            raise InvalidTuning(message, param="examples")
        if settings.shared_head is not None:
            raise _wrong_setting("shared_head", settings.shared_head, "the examples have completions, not labels")

    def _settings(self, request: TuningRequest) -> TuningSettings:
        try:
            settings = TuningSettings(**request.settings)
        except TuningSettingsInvalid as error:
            raise InvalidTuning(f"settings: {error}", param="settings") from None
        adapters, heads = self._geometry.adapters, self._geometry.shared_heads
        if settings.kind == "hard" and settings.chosen(adapters) > adapters:
            raise _wrong_setting("k", settings.k, f"the bank has N={adapters} adapters to choose from")
        if settings.shared_head is not None and settings.shared_head not in heads:
            raise _wrong_setting("shared_head", settings.shared_head, f"the bank's are: {', '.join(heads) or 'none'}")
        return settings

    def _check_profile(self, settings: TuningSettings, labels: tuple[str, ...]) -> None:
        """A profile of the same shapes and words goes through what an upload goes through."""
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


def _wrong_setting(name: str, value: object, reason: str) -> InvalidTuning:
    return InvalidTuning(f"settings.{name} is {value!r}: {reason}", param=f"settings.{name}")
