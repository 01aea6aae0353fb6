"""Logprobs of a prompt's tokens, each given those before it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..lanes import on_device
from ..vocabulary_head import VocabularyHead
from .logprobs import LaunchedLogprobs, RowLogprobs, row_logprobs, rows_at_once


class Targets(NamedTuple):
    """Prompt tokens whose logprobs are wanted.

    Args:
        first: the chunk's row that predicts the first of them; the rows after it predict the others.
        ids: ``[n]``.
        likeliest: how many of the likeliest tokens are told for each.
    """

    first: int
    ids: NDArray[np.int64]
    likeliest: int


class LaunchedPromptLogprobs:
    """Of one chunk's targets, in order."""

    def __init__(self, portions: list[LaunchedLogprobs]) -> None:
        self._portions = portions

    def result(self) -> list[RowLogprobs]:
        """Waits for them."""
        return [row for portion in self._portions for row in portion.result()]


def launch_prompt_logprobs(hidden: Tensor, head: VocabularyHead, targets: Targets) -> LaunchedPromptLogprobs:
    """A few rows at a time: the logits of a whole prompt may be larger than the model.

    Args:
        hidden: ``[m, H]`` of a chunk's tokens.
    """
    rows = hidden[targets.first : targets.first + len(targets.ids)]
    ids = on_device(targets.ids, hidden.device)
    portions: list[LaunchedLogprobs] = []
    at_once = rows_at_once(head.weight.shape[0], hidden.device)
    for start in range(0, len(rows), at_once):
        logits = head(rows[start : start + at_once])
        portions.append(row_logprobs(logits, ids[start : start + at_once], [targets.likeliest] * len(logits)))
    return LaunchedPromptLogprobs(portions)
