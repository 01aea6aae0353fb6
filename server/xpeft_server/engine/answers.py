"""Logits to answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .requests import ClassifiedText, ClassifyAnswer
from .ticket import Ticket

_FEW: Final = 16
"""Labels up to which softmax is plain Python. Nothing else decides, so an answer's bits depend on nothing else."""


def classified_texts(logits: Sequence[NDArray[np.float32]], labels: tuple[str, ...]) -> tuple[ClassifiedText, ...]:
    """Softmax in float64; of equally likely labels the first wins. With one label it is regression: the raw value.

    Args:
        logits: ``[C]`` of each text, in the order of ``labels``.
    """
    count = len(labels)
    if count == 1:
        return tuple(ClassifiedText(labels[0], float(each[0]), (), 1) for each in logits)
    softmax = _softmax_of_few if count <= _FEW else _softmax
    return tuple(
        ClassifiedText(labels[best], probs[best], probs, count)
        for probs, best in ((softmax(each), int(each.argmax())) for each in logits)
    )


def _softmax_of_few(logits: NDArray[np.float32]) -> tuple[float, ...]:
    """In plain Python: for a few labels numpy's calls cost more than the arithmetic."""
    values = logits.tolist()
    highest = max(values)
    exponents = [math.exp(value - highest) for value in values]
    total = sum(exponents)
    return tuple([each / total for each in exponents])


def _softmax(logits: NDArray[np.float32]) -> tuple[float, ...]:
    exponents = np.exp(logits.astype(np.float64) - float(logits.max()))
    return tuple((exponents / exponents.sum()).tolist())


def answer_of(ticket: Ticket) -> ClassifyAnswer:
    """The answer to a request whose texts have all been computed."""
    labels = ticket.profile.labels or ()
    return ClassifyAnswer(
        profile_version=ticket.profile.version,
        labels=labels,
        data=classified_texts([each for each in ticket.logits if each is not None], labels),
        prompt_tokens=ticket.tokens,
        queue_time=ticket.waited,
        inference_time=ticket.inference_time,
        verified=ticket.fresh,
    )
