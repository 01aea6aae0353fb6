"""What each token of a row weighs in a draw, under the row's rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..lanes import on_device
from .cut import BinOrder
from .digits import DigitOrder
from .order import LikelihoodOrder
from .rule import SamplingRule

ONE = 2.0**52
"""The weight of a certain token."""

ORDERS: dict[str, type[LikelihoodOrder]] = {"cpu": BinOrder}
"""By type of device; `DigitOrder` elsewhere. Either leaves the same weights."""


def token_weights(scores: Tensor, peaks: Tensor, rules: Sequence[SamplingRule]) -> Tensor:
    """Temperature, top_k, top_p and min_p of each row, in that order; see `SamplingRule`.

    Semantics: weights[b] = round(softmax(scores[b] / temperature) · 2⁵²), 0 for tokens that the row's limits leave out

    As in transformers, all tokens as likely as the last of top_k stay. Of those as likely as the last of top_p as many
    stay as it needs, those with the lowest ids. Weights are integers, so that their sums are exact in whatever order a
    device adds them and a row's result depends on no other; tokens less likely than 2⁻⁵³ weigh nothing.

    Args:
        scores: ``[B, V]`` float32, logits after the repetition penalty.
        peaks: ``[B]`` float32, the highest of each row. Where it is not finite, the row's weights mean nothing.
        rules: B rules with a temperature > 0.
    Returns: ``[B, V]`` float64, each row's sum from 1 to below 2⁵³.
    """
    vocabulary = scores.shape[-1]
    exponents = scores.double().sub_(peaks[:, None]).div_(_column([rule.temperature for rule in rules], scores))
    weights = exponents.softmax(-1)
    unlikely = None
    if any(rule.min_p for rule in rules):
        # The likeliest token stays whatever the other limits are, so that these leave out the same before them.
        part = _column([min(rule.min_p, 1) for rule in rules], scores)
        unlikely = weights < weights.amax(-1, keepdim=True) * part
    weights.mul_(ONE).round_()
    top_k = [rule.top_k if 0 < rule.top_k < vocabulary else math.inf for rule in rules]
    top_p = [rule.top_p if rule.top_p < 1 else math.inf for rule in rules]
    if min(*top_k, *top_p) < math.inf:
        order = ORDERS.get(scores.device.type, DigitOrder)(scores, exponents)
        if min(top_k) < math.inf:
            one_each = weights.new_ones(1).expand_as(weights)
            order.leave_out(weights, one_each, _column(top_k, scores), keep_ties=True)
        if min(top_p) < math.inf:
            target = (weights.sum(-1, keepdim=True) * _column(top_p, scores)).ceil_().clamp_(min=1)
            order.leave_out(weights, weights, target, keep_ties=False)
    return weights if unlikely is None else weights.masked_fill_(unlikely, 0)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return on_device(np.array(values, np.float64), like.device)[:, None]
