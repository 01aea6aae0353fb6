"""Logits to answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .requests import Classification, ClassifyAnswer
from .ticket import Ticket


def classifications(logits: NDArray[np.float32], labels: tuple[str, ...]) -> tuple[Classification, ...]:
    """Softmax in float64; the label is the first of the likeliest. One label is regression: its raw value.

    Args:
        logits: ``[n, C]``, of n texts, in the order of ``labels``.
    """
    if len(labels) == 1:
        return tuple(Classification(labels[0], score, (), 1) for score in logits[:, 0].tolist())
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probs = (exponents / exponents.sum(axis=1, keepdims=True)).tolist()
    best = logits.argmax(axis=1).tolist()
    count = len(labels)
    return tuple(Classification(labels[i], each[i], tuple(each), count) for i, each in zip(best, probs, strict=True))


def answer_of(ticket: Ticket) -> ClassifyAnswer:
    """The answer to a request whose texts have all been computed."""
    labels = ticket.profile.labels or ()
    return ClassifyAnswer(
        profile_version=ticket.profile.version,
        labels=labels,
        data=classifications(np.stack([each for each in ticket.logits if each is not None]), labels),
        prompt_tokens=ticket.tokens,
        queue_time=ticket.waited,
        inference_time=ticket.inference_time,
        verified=ticket.fresh,
    )
