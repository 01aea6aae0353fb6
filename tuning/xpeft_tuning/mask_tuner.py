"""Tunes profiles: the PLM and the bank stay as they are, gradients reach masks, LN affine and head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, SupportsFloat

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.plm import Plm

from .cohort import Cohort
from .dataset import Dataset
from .errors import DatasetInvalid, TuningError
from .evaluation import Score, Scored, score_logits
from .labelled_texts import LabelledTexts
from .learnable import check_task, head_labels
from .linear_head import LinearHead
from .settings import TuningSettings
from .trainee import Trainee, enrol


class TuningTask(NamedTuple):
    """A profile to be tuned; ``name`` tells it from the others."""

    name: str
    dataset: Dataset


class TuningProgress(NamedTuple):
    """After a profile's step.

    Args:
        losses: of the epoch's steps, the first ``step`` of them those so far.
        score: of the profile as it was after the last whole epoch, on the dev rows if they choose; else, of a profile
            that is tuned alone, on the held-out ones, unless they are more than the train rows.
    """

    name: str
    epoch: int
    epochs: int
    step: int
    steps: int
    losses: Sequence[SupportsFloat]
    score: Score | None

    @property
    def loss(self) -> float:
        """Mean of the epoch's steps so far: cross-entropy in nats, or half the squared error. Waits for the device."""
        return sum(map(float, islice(self.losses, self.step))) / self.step


class TunedProfile(NamedTuple):
    """A profile and how it does, measured as it will be served.

    Args:
        train, held_out: scores of ``profile``; held-out rows were neither learned from nor used to choose an epoch.
        majority: share of the held-out rows (without any, of the train rows) that have the most frequent train label;
            None without labels to count.
        head_alone: score on the same rows of a head on the bare PLM's features; None with a shared head, of
            completions, and among many profiles.
        bare: score on the same rows of the bare PLM; None but for completions.
        epoch: the epoch that was kept, from 1; 0 is the start.
        cut: texts that were longer than the model takes and were cut.
    """

    profile: Profile
    train: Score
    held_out: Score | None
    majority: float | None
    head_alone: Score | None
    bare: Score | None
    epoch: int
    cut: int


class Refused(NamedTuple):
    """A profile of many that cannot be tuned."""

    name: str
    reason: TuningError


class Tuned(NamedTuple):
    """A profile of many that has been tuned."""

    name: str
    result: TunedProfile


def tune_profile(
    plm: Plm,
    bank: Bank,
    dataset: Dataset,
    settings: TuningSettings,
    progress: Callable[[TuningProgress], None] = lambda _: None,
) -> TunedProfile:
    """Tune a profile for the dataset; float32 is what profiles are tuned best in.

    Raises: DataTooSmall if there is nothing to tell apart; DatasetInvalid if a shared head lacks a label;
        TuningSettingsInvalid if the bank cannot do what is asked, or the data; Unservable if what was learned is no
        profile.
    """
    settings.check_fits(bank.adapters, bank.heads)
    trainee = _enrolled(plm, bank, TuningTask("", dataset), settings)
    cohort = Cohort(
        plm, bank, settings, places=1, classes=len(trainee.labels), completes=dataset.completions, score_held_out=True
    )
    cohort.admit([trainee])
    while cohort.trainees:
        cohort.step()
        progress(_progress(trainee))
    if trainee.failure is not None:
        raise trainee.failure
    return _measured(cohort, [trainee])[0]._replace(head_alone=_head_alone(cohort, trainee))


def tune_profiles(
    plm: Plm,
    bank: Bank,
    tasks: Iterable[TuningTask],
    settings: TuningSettings,
    *,
    places: int,
    classes: int,
    completes: bool = False,
    placed: bool | None = None,
    progress: Callable[[TuningProgress], None] = lambda _: None,
) -> Iterator[Tuned | Refused]:
    """Tune many profiles, ``places`` of them at a time: the next one takes the place of one that is done.

    Args:
        tasks: names are distinct.
        classes: labels of the widest dataset.
        completes: whether all datasets are of completions; else none is.
        placed: see `Cohort`.
    Returns: each task's outcome as soon as it is known.
    Raises: TuningSettingsInvalid if the bank cannot do what is asked.
    """
    settings.check_fits(bank.adapters, bank.heads)
    if settings.shared_head is not None:
        classes = len(bank.heads[settings.shared_head].labels)
    cohort = Cohort(plm, bank, settings, places=places, classes=classes, completes=completes, placed=placed)
    waiting = iter(tasks)
    while True:
        entering: list[Trainee] = []
        while len(entering) < cohort.free and (task := next(waiting, None)) is not None:
            try:
                _check_alike(task.dataset, completes)
                entering.append(_enrolled(plm, bank, task, settings))
            except TuningError as reason:
                yield Refused(task.name, reason)
        cohort.admit(entering)
        if not cohort.trainees:
            return
        running = list(cohort.trainees)
        done = cohort.step()
        for trainee in running:
            progress(_progress(trainee))
        yield from (Refused(each.name, each.failure) for each in done if each.failure is not None)
        good = [each for each in done if each.failure is None]
        for trainee, result in zip(good, _measured(cohort, good), strict=True):
            yield Tuned(trainee.name, result)


def _check_alike(dataset: Dataset, completes: bool) -> None:
    if dataset.completions is not completes:
        found, wanted = ("completions", "labels") if dataset.completions else ("labels", "completions")
        raise DatasetInvalid(f"the rows have {found}, those of the others {wanted}")


def _enrolled(plm: Plm, bank: Bank, task: TuningTask, settings: TuningSettings) -> Trainee:
    check_task(task.dataset, settings, generates=plm.vocabulary_head is not None)
    shared = None if settings.shared_head is None else bank.heads[settings.shared_head].labels
    return enrol(plm, task.name, task.dataset, head_labels(task.dataset, settings, shared), settings)


def _progress(trainee: Trainee) -> TuningProgress:
    return TuningProgress(
        name=trainee.name,
        epoch=trainee.epoch,
        epochs=trainee.settings.epochs,
        step=trainee.step,
        steps=trainee.steps,
        losses=trainee.losses,
        score=trainee.score,
    )


def _measured(cohort: Cohort, trainees: list[Trainee]) -> list[TunedProfile]:
    kept = [(each, profile) for each in trainees if (profile := each.best.profile) is not None]
    scores = cohort.evaluator.scores
    train = scores([Scored(profile, each.train) for each, profile in kept])
    bare = cohort.evaluator.bare_scores([each.measured for each, _ in kept])
    held_out = iter(scores([Scored(profile, each.held_out) for each, profile in kept if len(each.held_out)]))
    return [
        TunedProfile(
            profile=profile,
            train=score,
            held_out=next(held_out) if len(each.held_out) else None,
            majority=_majority(each.labels, each.train, each.measured),
            head_alone=None,
            bare=alone,
            epoch=each.best.epoch,
            cut=each.train.cut + each.dev.cut + each.held_out.cut,
        )
        for (each, profile), score, alone in zip(kept, train, bare, strict=True)
    ]


def _head_alone(cohort: Cohort, trainee: Trainee) -> Score | None:
    if trainee.settings.shared_head is not None or not trainee.labels:
        return None
    (features,) = cohort.features([trainee.train])
    (measured,) = cohort.features([trainee.measured])
    zero = LinearHead.zero(len(trainee.labels), features.shape[1])
    ((head, _),) = cohort.fitted_heads([trainee], [features], [zero])
    return score_logits(head(measured).cpu(), trainee.measured.targets)


def _majority(labels: tuple[str, ...], train: LabelledTexts, measured: LabelledTexts) -> float | None:
    """Share of the measured texts that have the label which most train texts have, of equals the first."""
    if not labels or train.targets.is_floating_point():
        return None
    return (measured.targets == train.targets.bincount().argmax()).double().mean().item()
