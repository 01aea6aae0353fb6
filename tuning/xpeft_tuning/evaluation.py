"""How good a profile is when it is served: through the same code, masks, float16 and all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from xpeft_profiles import Profile
from xpeft_server.model.bank import Bank
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.plm import Plm
from xpeft_server.model.slots import SlotFill

from .labelled_texts import LabelledTexts


class Score(NamedTuple):
    """Share of ``rows`` texts that got their label, and the mean cross-entropy in nats."""

    accuracy: float
    loss: float
    rows: int


class Evaluator:
    """One slot of a `Classifier`, the server's own.

    Args:
        classes: C, labels of an own head.
        tokens: packed tokens in one batch.
    """

    def __init__(self, plm: Plm, bank: Bank, *, classes: int, tokens: int) -> None:
        self._classifier = Classifier(plm, bank, slots=1, head_rows=classes)
        self._tokens = tokens

    def score(self, profile: Profile, texts: LabelledTexts) -> Score:
        """Args: texts: at least one, targets in the order of the profile's labels."""
        classifier = self._classifier
        own = np.arange(0 if profile.labels is None else len(profile.labels))
        classifier.fill([SlotFill(0, profile, own)])
        rows = own if profile.shared_head is None else classifier.buffers.shared_head_rows[profile.shared_head]
        logits = np.empty((len(texts), rows.size), np.float32)
        for places in texts.within(texts.by_length(), self._tokens):
            logits[places] = classifier.logits([ClassifierInput(texts.texts[place], 0, rows) for place in places])
        return score_logits(torch.from_numpy(logits), texts.targets.cpu())


def score_logits(logits: torch.Tensor, targets: torch.Tensor) -> Score:
    """Args: ``[Q, C]`` and ``[Q]``."""
    loss = functional.cross_entropy(logits.double(), targets)
    return Score((logits.argmax(dim=1) == targets).double().mean().item(), loss.item(), targets.numel())
