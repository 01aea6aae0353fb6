"""The next token of each row of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..lanes import on_device
from .logprobs import LaunchedLogprobs, RowLogprobs, row_logprobs, rows_at_once
from .rule import SamplingRule
from .uniforms import uniforms
from .weights import token_weights

NO_TOKEN = -1
_LOWEST, _HIGHEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


class Draw(NamedTuple):
    """One row's part.

    Args:
        seed: 64 bits.
        step: tokens generated before; with the seed it alone decides the random number.
        seen: ids of prompt and answer; needed only with a repetition penalty.
    """

    rule: SamplingRule
    seed: int
    step: int
    seen: NDArray[np.int64] | None = None


class Chosen(NamedTuple):
    """``ids`` ``[B]``, `NO_TOKEN` where a row has NaN, +inf or nothing but −inf; ``logprobs`` where the rule asks."""

    ids: NDArray[np.int64]
    logprobs: list[RowLogprobs | None]


class LaunchedChoice:
    """Tokens that are chosen, or will be.

    Args:
        ids: ``[B]`` int64 on the device.
        told: logprobs of some rows, and which.
    """

    def __init__(self, ids: Tensor, told: Sequence[tuple[list[int], LaunchedLogprobs]]) -> None:
        self._ids = ids
        self._told = told

    def result(self) -> Chosen:
        """Waits for them."""
        found = self._ids.cpu().numpy()
        logprobs: list[RowLogprobs | None] = [None] * len(found)
        for rows, launched in self._told:
            for i, row in zip(rows, launched.result(), strict=True):
                logprobs[i] = row if found[i] >= 0 else None
        return Chosen(found, logprobs)


def choose_tokens(logits: Tensor, draws: Sequence[Draw]) -> Chosen:
    """See `launch_choice`; waits for the tokens."""
    return launch_choice(logits, draws).result()


@torch.inference_mode()
def launch_choice(logits: Tensor, draws: Sequence[Draw]) -> LaunchedChoice:
    """Choose by each row's rule; what is in the batch beside a row does not matter in any bit.

    Of equally likely tokens the greedy choice is the lowest id. A draw inverts the cumulative distribution, added up in
    the order of the vocabulary, at one random number. Every shape follows from the draws: nothing waits for a device.

    Args:
        logits: ``[B, V]`` float32, on any device.
    Raises: ValueError if logits and draws do not go together, or a penalised row comes without its ``seen``.
    """
    if logits.dtype != torch.float32 or logits.ndim != 2 or len(logits) != len(draws):
        raise ValueError(f"logits must be float32 of [{len(draws)}, V], not {logits.dtype} of {list(logits.shape)}")
    scores = _penalised(logits, draws)
    peaks, ids = scores.max(-1)
    drawn = [i for i, draw in enumerate(draws) if draw.rule.temperature > 0]
    for cuts in (False, True):
        for rows in _portions([i for i in drawn if draws[i].rule.cuts is cuts], logits):
            place = _place(rows, logits)
            ids[place] = _drawn(scores[place], peaks[place], [draws[i] for i in rows])
    counts = {i: count for i, draw in enumerate(draws) if (count := draw.rule.logprobs) is not None}
    told = []
    for rows in _portions(list(counts), logits):
        place = _place(rows, logits)
        told.append((rows, row_logprobs(logits[place], ids[place], [counts[i] for i in rows])))
    return LaunchedChoice(ids.masked_fill(~peaks.isfinite(), NO_TOKEN), told)


def _penalised(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The logits, or a copy where any row has a penalty; a penalised finite logit stays finite."""
    penalised = [i for i, draw in enumerate(draws) if draw.rule.repetition_penalty != 1]
    if not penalised:
        return logits
    vocabulary = logits.shape[-1]
    places, penalties = [], []
    for i in penalised:
        seen = draws[i].seen
        if seen is None:
            raise ValueError(f"draws[{i}]: seen is None with repetition_penalty {draws[i].rule.repetition_penalty}")
        places.append(seen[seen < vocabulary] + i * vocabulary)
        by = min(max(draws[i].rule.repetition_penalty, _LOWEST), _HIGHEST)
        penalties.append(np.full(len(places[-1]), by, np.float32))
    place = on_device(np.concatenate(places), logits.device)
    penalty = on_device(np.concatenate(penalties), logits.device)
    flat = logits.flatten().clone()
    old = flat[place]
    new = torch.where(old < 0, old * penalty, old / penalty).clamp_(-_HIGHEST, _HIGHEST)
    flat[place] = torch.where(old.isinf(), old, new)
    return flat.view_as(logits)


def _drawn(scores: Tensor, peaks: Tensor, draws: Sequence[Draw]) -> Tensor:
    up_to = token_weights(scores, peaks, [draw.rule for draw in draws]).cumsum(-1)
    number = on_device(uniforms([draw.seed for draw in draws], [draw.step for draw in draws]), scores.device)
    # At most (1 − 2⁻⁵³) of the whole: that never rounds up to it.
    target = (number[:, None] * up_to[:, -1:]).floor_()
    return torch.searchsorted(up_to, target, right=True).clamp_(max=scores.shape[-1] - 1)[:, 0]


def _portions(rows: list[int], logits: Tensor) -> Iterator[list[int]]:
    size = rows_at_once(logits.shape[-1], logits.device)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _place(rows: list[int], like: Tensor) -> slice | Tensor:
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(rows[0], rows[-1] + 1)
    return on_device(np.array(rows), like.device)
