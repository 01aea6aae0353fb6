"""Which tokens of a row are likelier than others, as what leaves out the unlikely ones has to know it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class LikelihoodOrder(Protocol):
    """The tokens of each row, the likeliest first, of equally likely ones the lowest id first.

    Args:
        scores: ``[B, V]`` float32, in the order of likelihood.
        exponents: ``[B, V]`` float64 ≤ 0, natural logarithms of likelihoods relative to the row's likeliest token.
    """

    def __init__(self, scores: Tensor, exponents: Tensor) -> None: ...

    def leave_out(self, weights: Tensor, counted: Tensor, target: Tensor, *, keep_ties: bool) -> None:
        """Set the weights to 0 of what is less likely than the fewest likeliest tokens that count ``target`` together.

        Args:
            weights: ``[B, V]`` float64, 0 for tokens that are e³⁷ times less likely than the likeliest.
            counted: ``[B, V]`` float64, what each token counts; integers ≥ 0 whose sum in a row is below 2⁵³, the
                same for equally likely tokens. May be ``weights``. Rows with NaN are left alone, or mean nothing after.
            target: ``[B, 1]`` float64, from 1 to the sum of what the row counts, or infinity to leave out nothing.
            keep_ties: leave out nothing that is as likely as the last token that is kept.
        """
        ...


def ordered_bits(scores: Tensor) -> Tensor:
    """The bits of float32 turned so that as whole numbers they are in the floats' order; 0 and −0 are one.

    Returns: int64 of the same shape, from −2³¹ to 2³¹ − 1.
    """
    bits = (scores + 0.0).view(torch.int32)
    # They are in order already, but for those behind a minus sign, which have to be turned round.
    return (bits >> 31).bitwise_and_(0x7FFF_FFFF).bitwise_xor_(bits).long()
