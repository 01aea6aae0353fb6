"""Tunes one profile: the PLM and the bank stay as they are, gradients reach masks, LN affine and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from xpeft_profiles import Profile
from xpeft_server.model.bank import Bank
from xpeft_server.model.plm import Plm
from xpeft_server.model.pooling import pool
from xpeft_server.model.slots import SlotAdapters, adapter_form, bank_rows

from .best_epoch import BestEpoch
from .dataset import Dataset
from .draft import ProfileDraft
from .errors import DatasetInvalid, DataTooSmall
from .evaluation import Evaluator, Score, score_logits
from .labelled_texts import LabelledTexts
from .linear_head import LinearHead, choose_penalty, fit_linear_head
from .partition import Partition, partition
from .settings import TuningSettings


class TuningProgress(NamedTuple):
    """After a step.

    Args:
        loss: mean of the epoch's steps so far, in nats.
        score: of the profile as it was after the last whole epoch, on the dev rows if they choose, else on the
            held-out ones; None where there are none, or more than train rows.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    score: Score | None


class TunedProfile(NamedTuple):
    """A profile and how it does, measured as it will be served.

    Args:
        train, held_out: scores of ``profile``; held-out rows were neither learned from nor used to choose an epoch.
        majority: share of the held-out rows (without any, of the train rows) that have the most frequent train label.
        head_alone: score on the same rows of a head on the bare PLM's features, None with a shared head.
        epoch: the epoch that was kept, from 1.
        cut: texts that were longer than the model takes and lost their end.
    """

    profile: Profile
    train: Score
    held_out: Score | None
    majority: float
    head_alone: Score | None
    epoch: int
    cut: int


def tune_profile(
    plm: Plm,
    bank: Bank,
    dataset: Dataset,
    settings: TuningSettings,
    progress: Callable[[TuningProgress], None] = lambda _: None,
) -> TunedProfile:
    """Tune a profile for the dataset.

    Raises: DataTooSmall if there is nothing to tell apart; DatasetInvalid if a shared head lacks a label;
        SettingsInvalid if the bank cannot do what is asked.
    """
    settings.check_fits(bank)
    labels = _head_labels(bank, dataset, settings)
    parts = partition(dataset, held_out=settings.held_out, choose=settings.stop_on is not None, seed=settings.seed)
    _check_learnable(parts, labels if settings.shared_head is None else ())
    if settings.stop_on is not None and not parts.dev:
        raise DataTooSmall(f"stop_on is {settings.stop_on!r}, but no label has rows enough to choose an epoch by")
    return MaskTuner(plm, bank, labels, settings).tune(parts, progress)


class MaskTuner:
    """Everything that tuning over one PLM and one bank needs, for one profile at a time.

    Args:
        plm: as `load_plm` makes it; float32 is what profiles are tuned best in.
        bank: a bank of that model.
        labels: C labels, the shared head's own where ``settings.shared_head`` names one.
    """

    def __init__(self, plm: Plm, bank: Bank, labels: tuple[str, ...], settings: TuningSettings) -> None:
        self._plm = plm
        self._bank = bank
        self._labels = labels
        self._settings = settings
        self._form = adapter_form(bank)
        self._bank_rows = bank_rows(bank, device=plm.device, dtype=torch.float32)
        self._evaluator = Evaluator(plm, bank, classes=len(labels), tokens=settings.batch_tokens)

    def tune(self, parts: Partition, progress: Callable[[TuningProgress], None]) -> TunedProfile:
        """Learn from ``parts.train``, choose by ``parts.dev`` if asked to, measure on ``parts.held_out``."""
        train, dev, held_out = (LabelledTexts(self._plm, rows, self._labels) for rows in parts)
        measured = held_out if len(held_out) else train
        head, penalty = None, 0.0
        if self._settings.shared_head is None:
            head, penalty = self._linear_head(train)
        draft = ProfileDraft(
            self._bank, self._form, self._settings, labels=self._labels, head=head, device=self._plm.device
        )
        # Without stop_on dev is empty, and held-out rows are looked at between epochs where that costs little.
        watched = held_out if self._settings.stop_on is None and len(held_out) <= len(train) else dev
        epoch, profile = self._learn(draft, penalty / len(train), train, watched, progress)
        return TunedProfile(
            profile=profile,
            train=self._evaluator.score(profile, train),
            held_out=self._evaluator.score(profile, held_out) if len(held_out) else None,
            majority=_share(measured, _most_frequent(train)),
            head_alone=None if head is None else score_logits(head(self._features(measured)), measured.targets),
            epoch=epoch,
            cut=train.cut + dev.cut + held_out.cut,
        )

    def _linear_head(self, train: LabelledTexts) -> tuple[LinearHead, float]:
        """Where the own head starts, and its penalty."""
        features, classes = self._features(train), len(self._labels)
        penalty = self._settings.head_penalty
        if penalty is None:
            penalty = choose_penalty(features, train.targets, classes, seed=self._settings.seed)
        return fit_linear_head(features, train.targets, classes, penalty=penalty), penalty

    def _learn(
        self,
        draft: ProfileDraft,
        penalty: float,
        train: LabelledTexts,
        watched: LabelledTexts,
        progress: Callable[[TuningProgress], None],
    ) -> tuple[int, Profile]:
        """Epoch and profile that are kept; with ``stop_on`` the start (epoch 0) is a candidate too."""
        settings = self._settings
        steps = -(-len(train) // settings.batch_rows)
        optimizer = self._optimizer(draft)
        schedule = LambdaLR(optimizer, lambda step: 1 - step / (settings.epochs * steps))
        generator = np.random.Generator(np.random.PCG64(settings.seed))
        start = draft.profile()
        best = BestEpoch(settings.stop_on, settings.patience, self._evaluator, watched)
        score = best.offer(0, start)
        for epoch in range(1, settings.epochs + 1):
            total = 0.0
            for step, places in enumerate(np.array_split(generator.permutation(len(train)), steps), start=1):
                total += self._step(draft, penalty, train, places, optimizer)
                schedule.step()
                progress(TuningProgress(epoch, settings.epochs, step, steps, total / step, score))
            score = best.offer(epoch, draft.profile())
            if best.given_up(epoch):
                break
        return best.epoch, best.profile or start

    def _step(
        self,
        draft: ProfileDraft,
        penalty: float,
        texts: LabelledTexts,
        places: NDArray[np.integer],
        optimizer: Optimizer,
    ) -> float:
        """One update for the texts at ``places``; their mean cross-entropy before it, in nats."""
        total = 0.0
        optimizer.zero_grad(set_to_none=True)
        for part in texts.batches(places, self._settings.batch_tokens):
            rows = draft.slot_rows(self._bank_rows).to(self._plm.dtype)
            hidden = self._plm.forward(part.packed, SlotAdapters(rows, part.tiles, self._form))
            logits = draft.head(pool(hidden, part.packed, self._bank.pooling))
            loss = functional.cross_entropy(logits, part.targets, reduction="sum") / len(places)
            torch.autograd.backward(loss)
            total += loss.item()
        if draft.head_weight.requires_grad:
            torch.autograd.backward(penalty * draft.head_weight.square().sum() / 2)
        optimizer.step()
        return total

    def _optimizer(self, draft: ProfileDraft) -> Optimizer:
        settings = self._settings
        groups = [
            {"params": [draft.logits], "lr": settings.lr_masks},
            {"params": [draft.ln_weight, draft.ln_bias], "lr": settings.lr_norm},
            {"params": [draft.head_weight, draft.head_bias], "lr": settings.lr_head},
        ]
        return torch.optim.AdamW(groups, weight_decay=0.0)

    @torch.inference_mode()
    def _features(self, texts: LabelledTexts) -> Tensor:
        """``[Q, H]`` of the bare PLM, in the order of the texts."""
        features = torch.empty(len(texts), self._bank.hidden, device=self._plm.device)
        for part in texts.batches(texts.by_length(), self._settings.batch_tokens):
            features[part.places] = pool(self._plm.forward(part.packed), part.packed, self._bank.pooling)
        return features


def _head_labels(bank: Bank, dataset: Dataset, settings: TuningSettings) -> tuple[str, ...]:
    """The labels that the profile's head has. Raises: DatasetInvalid for one that a shared head lacks."""
    if settings.shared_head is None:
        return dataset.labels
    labels = bank.heads[settings.shared_head].labels
    for label in dataset.labels:
        if label not in labels:
            raise DatasetInvalid(f"label {label!r} is not one of shared head {settings.shared_head!r} ({labels})")
    return labels


def _check_learnable(parts: Partition, labels: tuple[str, ...]) -> None:
    """Raises: DataTooSmall unless train has two labels at least, and all of an own head's."""
    seen = {row.label for row in parts.train}
    if len(seen) < 2:
        raise DataTooSmall(
            f"the train rows have {len(seen)} label ({', '.join(map(repr, seen)) or 'none'}): tuning needs two at least"
        )
    for label in labels:
        if label not in seen:
            raise DataTooSmall(f"label {label!r} has no train row to learn it from")


def _most_frequent(texts: LabelledTexts) -> int:
    """The target that most texts have, of equals the first."""
    return int(texts.targets.bincount().argmax())


def _share(texts: LabelledTexts, target: int) -> float:
    return (texts.targets == target).double().mean().item()
