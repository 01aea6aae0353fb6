"""Where a row of tokens, sorted by likelihood, is cut; found without sorting the vocabulary.

How many tokens are sorted depends on their values, for which a GPU would be waited for: `digits` has its way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS_A_NAT = 64
LAST_BIN = 37 * BINS_A_NAT
"""A token that is e³⁷ times less likely than the likeliest weighs less than 2⁻⁵³ of a row: what is there stays."""


class BinOrder:
    """A `LikelihoodOrder` for a device that works while it is called."""

    def __init__(self, scores: Tensor, exponents: Tensor) -> None:
        self._scores = scores
        self._bins = likelihood_bins(exponents)

    def leave_out(self, weights: Tensor, counted: Tensor, target: Tensor, *, keep_ties: bool) -> None:
        cut(self._scores, self._bins, counted, target, keep_ties=keep_ties).leave_out(weights, self._bins)


class Cut(NamedTuple):
    """Tokens that are left out: whole bins from one on in each row ``[B, 1]``, and some of the bin before that."""

    bin: Tensor
    rows: Tensor
    ids: Tensor

    def leave_out(self, weights: Tensor, bins: Tensor) -> None:
        """Set their weights to 0."""
        weights.masked_fill_(bins >= self.bin, 0)
        weights[self.rows, self.ids] = 0


def likelihood_bins(exponents: Tensor) -> Tensor:
    """A histogram's bin for each token, the likeliest in bin 0; equal tokens share one.

    Args:
        exponents: ``[B, V]`` float64 ≤ 0, natural logarithms of likelihoods relative to the row's likeliest token.
    Returns: ``[B, V]`` int64 from 0 to `LAST_BIN`, also for NaN.
    """
    return (exponents * -BINS_A_NAT).clamp_(max=LAST_BIN).long().clamp_(min=0)


def cut(scores: Tensor, bins: Tensor, weights: Tensor, target: Tensor, *, keep_ties: bool) -> Cut:
    """Leave out what is less likely than the fewest likeliest tokens that weigh ``target`` together.

    Of equally likely tokens the lowest ids count as the likeliest, unless all are kept. A histogram of weights tells
    which bin of each row has the last token that is kept; only such bins are sorted.

    Args:
        scores: ``[B, V]`` float32, in the order of likelihood.
        bins: ``[B, V]`` int64 of `likelihood_bins`.
        weights: ``[B, V]`` float64, integers ≥ 0 whose sum in a row is below 2⁵³. Rows with NaN are left alone.
        target: ``[B, 1]`` float64, from 1 to the sum of the row's weights, or infinity to leave out nothing.
        keep_ties: leave out nothing that is as likely as the last token that is kept.
    """
    mass = weights.new_zeros(len(bins), LAST_BIN + 1).scatter_add_(-1, bins, weights)
    up_to = mass.cumsum(-1)
    last = torch.searchsorted(up_to, target).clamp_(max=LAST_BIN)
    rest = (target - up_to.gather(-1, last) + mass.gather(-1, last))[:, 0]
    open_bin = torch.where((last < LAST_BIN) & rest.isfinite()[:, None], last, -1)
    rows, ids = (bins == open_bin).nonzero(as_tuple=True)
    order = _by_score(rows, scores[rows, ids])
    rows, ids = rows[order], ids[order]
    kept = _before(rows, weights[rows, ids].long()) < rest[rows]
    if keep_ties:
        score = scores[rows, ids]
        lowest = score.new_full((len(bins),), torch.inf).scatter_reduce_(0, rows[kept], score[kept], "amin")
        kept = score >= lowest[rows]
    return Cut(last + 1, rows[~kept], ids[~kept])


def _by_score(rows: Tensor, scores: Tensor) -> Tensor:
    """Order by row, in each the highest score first, of equal ones the first first."""
    order = scores.argsort(descending=True, stable=True)
    return order[rows[order].argsort(stable=True)]


def _before(rows: Tensor, weights: Tensor) -> Tensor:
    """What stands before each entry in its row."""
    before = weights.cumsum(0) - weights
    return before - before[torch.searchsorted(rows, rows)]
