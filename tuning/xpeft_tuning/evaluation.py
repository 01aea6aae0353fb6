"""How good profiles are when they are served: scored by the server's own code, on hard masks and float16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.plm import Plm
from xpeft_server.model.slots import SlotAdapters, SlotFill

from .labelled_texts import LabelledTexts
from .objective import completion_losses
from .row_batch import Pick, pack_rows, within
from .token_runs import token_runs


class Score(NamedTuple):
    """On ``rows`` texts.

    Args:
        loss: mean cross-entropy in nats, of completions that of a token; or mean squared error.
        accuracy: share of texts that got their label; None where labels are numbers.
        correlation: Pearson's, of values and labels that are numbers, or of two labels given and wanted (which is
            Matthews'); None with more labels, and where either never changes.
    """

    loss: float
    rows: int
    accuracy: float | None = None
    correlation: float | None = None

    def record(self) -> dict[str, float]:
        """For JSON, without what is None."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Scored(NamedTuple):
    """A profile and at least one text, targets in the order of the profile's labels."""

    profile: Profile
    texts: LabelledTexts


class Evaluator:
    """Slots of a `Classifier`, the server's own.

    Args:
        slots: profiles in one batch.
        classes: C, labels of the widest own head.
        tokens: packed tokens in one batch.
        completes: whether texts are prompts with their completions.
    """

    def __init__(self, plm: Plm, bank: Bank, *, slots: int, classes: int, tokens: int, completes: bool = False) -> None:
        self._vocabulary = plm.vocabulary_head if completes else None
        self._classifier = Classifier(plm, bank, slots=slots, head_rows=slots * classes)
        self._slots = slots
        self._classes = classes
        self._tokens = tokens

    def scores(self, pairs: Sequence[Scored]) -> list[Score]:
        """One score a pair, in their order."""
        found: list[Score] = []
        for start in range(0, len(pairs), self._slots):
            some = pairs[start : start + self._slots]
            found += self._label_scores(some) if self._vocabulary is None else self._completion_scores(some)
        return found

    def bare_scores(self, every: Sequence[LabelledTexts]) -> list[Score | None]:
        """Of the PLM without adapters, on completions; it labels nothing without a head."""
        if self._vocabulary is None:
            return [None for _ in every]
        return [*self._score_completions(every, adapted=False)]

    def _label_scores(self, pairs: Sequence[Scored]) -> list[Score]:
        return [
            score_logits(torch.from_numpy(logits), pair.texts.targets)
            for logits, pair in zip(self._logits(pairs), pairs, strict=True)
        ]

    def _completion_scores(self, pairs: Sequence[Scored]) -> list[Score]:
        no_head = np.empty(0, np.int64)
        self._classifier.fill([SlotFill(slot, pair.profile, no_head) for slot, pair in enumerate(pairs)])
        return self._score_completions([pair.texts for pair in pairs], adapted=True)

    @torch.inference_mode()
    def _score_completions(self, every: Sequence[LabelledTexts], *, adapted: bool) -> list[Score]:
        """Under the profiles in the first slots, or under none."""
        assert self._vocabulary is not None  # noqa: S101
        classifier, buffers = self._classifier, self._classifier.buffers
        losses = torch.zeros(len(every), device=classifier.plm.device)
        picks = [Pick(slot, texts, texts.by_length()) for slot, texts in enumerate(every)]
        for run in within(picks, self._tokens):
            batch = pack_rows(classifier.plm, run)
            adapters = SlotAdapters(buffers.adapters, batch.tiles, buffers.form) if adapted else None
            hidden = classifier.plm.forward(batch.packed, adapters)
            each = completion_losses(hidden, batch.packed, batch.targets, self._vocabulary)
            losses.index_add_(0, batch.slots, each)
        return [Score(loss / len(texts), len(texts)) for loss, texts in zip(losses.tolist(), every, strict=True)]

    def _logits(self, pairs: Sequence[Scored]) -> list[NDArray[np.float32]]:
        """``[Q, C]`` of each pair."""
        rows = [self._head_rows(slot, pair.profile) for slot, pair in enumerate(pairs)]
        own = [
            each if pair.profile.head_weight is not None else each[:0] for each, pair in zip(rows, pairs, strict=True)
        ]
        self._classifier.fill(
            [SlotFill(slot, pair.profile, head) for slot, (pair, head) in enumerate(zip(pairs, own, strict=True))]
        )
        logits = [np.empty((len(pair.texts), head.size), np.float32) for pair, head in zip(pairs, rows, strict=True)]
        every = [(slot, place) for slot, pair in enumerate(pairs) for place in range(len(pair.texts))]
        every.sort(key=lambda each: len(pairs[each[0]].texts.texts[each[1]]))
        for run in token_runs((len(pairs[slot].texts.texts[place]) for slot, place in every), self._tokens):
            inputs = [ClassifierInput(pairs[slot].texts.texts[place], slot, rows[slot]) for slot, place in every[run]]
            for (slot, place), values in zip(every[run], self._classifier.logits(inputs), strict=True):
                logits[slot][place] = values
        return logits

    def _head_rows(self, slot: int, profile: Profile) -> NDArray[np.int64]:
        if profile.shared_head is not None:
            return self._classifier.buffers.shared_head_rows[profile.shared_head]
        labels = 0 if profile.labels is None else len(profile.labels)
        return slot * self._classes + np.arange(labels)


def score_logits(logits: torch.Tensor, targets: torch.Tensor) -> Score:
    """Args: ``[Q, C]`` and ``[Q]`` int64; or ``[Q, 1]`` and ``[Q]`` float32 where labels are numbers."""
    rows = targets.numel()
    if targets.is_floating_point():
        values, wanted = logits[:, 0].double(), targets.double()
        error = functional.mse_loss(values, wanted).item()
        return Score(error, rows, correlation=_correlation(values, wanted))
    loss = functional.cross_entropy(logits.double(), targets)
    answers = logits.argmax(dim=1)
    return Score(
        loss.item(),
        rows,
        accuracy=(answers == targets).double().mean().item(),
        correlation=_correlation(answers.double(), targets.double()) if logits.shape[1] == 2 else None,
    )


def _correlation(values: torch.Tensor, wanted: torch.Tensor) -> float | None:
    a, b = values - values.mean(), wanted - wanted.mean()
    size = (a.norm() * b.norm()).item()
    return (a @ b).item() / size if size > 0 else None
