"""Where a row of tokens, sorted by likelihood, is cut; found by operators whose shapes no value decides.

So nobody waits for the device that works them out.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from .order import ordered_bits

_DIGIT: Final = 11
_SHIFTS: Final = (22, 11, 0)
"""Where each digit of a rank begins, the leading one first: three have room for its 32 bits."""


class DigitOrder:
    """A `LikelihoodOrder`: a token's rank is a number that a score's bits give, and the last rank that is kept is found
    digit by digit, each by a histogram of what those count that agree in the digits before it (a radix search).
    """

    def __init__(self, scores: Tensor, exponents: Tensor) -> None:
        self._ranks = 0x7FFF_FFFF - ordered_bits(scores)

    def leave_out(self, weights: Tensor, counted: Tensor, target: Tensor, *, keep_ties: bool) -> None:
        last = torch.zeros_like(target, dtype=torch.int64)
        within, rest = counted, target
        for shift in _SHIFTS:
            digits = (self._ranks >> shift).bitwise_and_((1 << _DIGIT) - 1)
            mass = weights.new_zeros(len(weights), 1 << _DIGIT).scatter_add_(-1, digits, within)
            up_to = mass.cumsum(-1)
            digit = torch.searchsorted(up_to, rest).clamp_(max=(1 << _DIGIT) - 1)
            rest = rest - (up_to.gather(-1, digit) - mass.gather(-1, digit))
            within = within.masked_fill(digits != digit, 0)
            last = last + (digit << shift)
        left_out = self._ranks > last
        if not keep_ties:
            # What is left within has the last rank itself, and ``rest`` is what its first ones have to count together.
            left_out |= (self._ranks == last) & (within.cumsum(-1) - within >= rest)
        weights.masked_fill_(left_out, 0)
