"""How likely the chosen token was, and which were the likeliest in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .order import ordered_bits

_AT_ONCE = {"cpu": 1 << 19}
"""Scores that are worked on together: on CPU as many as its cache holds in float64, elsewhere a gibibyte."""


class RowLogprobs(NamedTuple):
    """Natural logarithms of probabilities, −inf for what a model rules out.

    Args:
        chosen: of the token that was chosen.
        ids, logprobs: of the likeliest tokens, the likeliest first, of equal ones the lowest id first.
    """

    chosen: float
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]


class LaunchedLogprobs:
    """Logprobs of some rows, on the device.

    Args:
        ids, logprobs: ``[B, 1 + K]``, of the chosen token and of the likeliest ones.
        counts: how many of the likeliest each row tells.
    """

    def __init__(self, ids: Tensor, logprobs: Tensor, counts: Sequence[int]) -> None:
        self._ids = ids
        self._logprobs = logprobs
        self._counts = counts

    def result(self) -> list[RowLogprobs]:
        """Waits for them."""
        values, best = self._logprobs.cpu().numpy(), self._ids[:, 1:].cpu().numpy()
        return [
            RowLogprobs(float(values[i, 0]), best[i, :count], values[i, 1 : count + 1])
            for i, count in enumerate(self._counts)
        ]


def row_logprobs(logits: Tensor, chosen: Tensor, counts: Sequence[int]) -> LaunchedLogprobs:
    """Of the logits as they are, in float64.

    Args:
        logits: ``[B, V]`` float32, finite or −inf; what is told of a row with others means nothing.
        chosen: ``[B]`` int64, ids.
        counts: how many of the likeliest each row tells.
    """
    logprobs = torch.log_softmax(logits.double(), -1)
    ids = torch.cat((chosen[:, None], _likeliest(logits, max(counts))), -1)
    return LaunchedLogprobs(ids, logprobs.gather(-1, ids), counts)


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    """How many rows of logits are worked on together, where each takes several times its memory."""
    return max(1, _AT_ONCE.get(device.type, 1 << 24) // vocabulary)


def _likeliest(scores: Tensor, count: int) -> Tensor:
    """Ids of each row's ``count`` highest scores, the highest first, of equal ones the lowest id first.

    Args:
        scores: ``[B, V]`` float32, no NaN.
    Returns: ``[B, min(count, V)]`` int64.
    """
    vocabulary = scores.shape[-1]
    # The id makes equal ones distinct.
    distinct = (ordered_bits(scores) << 32).bitwise_or_(torch.arange(vocabulary - 1, -1, -1, device=scores.device))
    top = distinct.topk(min(count, vocabulary), dim=-1).values
    return vocabulary - 1 - top.bitwise_and_(0xFFFF_FFFF)
