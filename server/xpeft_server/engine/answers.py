"""Logits to answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .requests import Classification, ClassifyAnswer
from .ticket import Ticket


def classification(logits: NDArray[np.float32], labels: tuple[str, ...]) -> Classification:
    """Softmax in float64; the label is the first of the likeliest. One label is regression: its raw value.

    Args:
        logits: ``[C]``, in the order of ``labels``.
    """
    if len(labels) == 1:
        return Classification(labels[0], float(logits[0]), (), 1)
    shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
    probs = tuple((shifted / shifted.sum()).tolist())
    best = int(logits.argmax())
    return Classification(labels[best], probs[best], probs, len(labels))


def answer_of(ticket: Ticket) -> ClassifyAnswer:
    """The answer to a request whose texts have all been computed."""
    labels = ticket.profile.labels or ()
    return ClassifyAnswer(
        profile_version=ticket.profile.version,
        labels=labels,
        data=tuple(classification(each, labels) for each in ticket.logits if each is not None),
        prompt_tokens=ticket.tokens,
        queue_time=ticket.waited,
        inference_time=ticket.inference_time,
        verified=ticket.fresh,
    )
