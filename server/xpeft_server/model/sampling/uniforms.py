"""Random numbers that a seed and a step alone decide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_WORD, _HALF = np.uint64(0xFFFF_FFFF), np.uint64(32)
_MULTIPLIERS = np.array([[0xD251_1F53], [0xCD9E_8D57]], np.uint64)
_WEYL = np.array([[0x9E37_79B9], [0xBB67_AE85]], np.uint64)


def philox(counters: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3; SC 2011), many at once.

    Args:
        counters: ``[4, n]``, 32 bits in each word.
        keys: ``[2, n]``, likewise.
    Returns: ``[4, n]``, likewise.
    """
    even, odd = counters[0::2], counters[1::2]
    for _ in range(_ROUNDS):
        product = even * _MULTIPLIERS
        even, odd = (product >> _HALF)[::-1] ^ odd ^ keys, (product & _WORD)[::-1]
        keys = keys + _WEYL & _WORD
    return np.stack((even[0], odd[0], even[1], odd[1]))


def uniforms(seeds: Sequence[int], steps: Sequence[int]) -> NDArray[np.float64]:
    """One number of each pair of seed and step, in [0, 1), a multiple of 2⁻⁵³. Only their lowest 64 bits count."""
    seed, step = (np.array([each & 0xFFFF_FFFF_FFFF_FFFF for each in many], np.uint64) for many in (seeds, steps))
    none = np.zeros_like(step)
    words = philox(np.stack((step & _WORD, step >> _HALF, none, none)), np.stack((seed & _WORD, seed >> _HALF)))
    bits = (words[0] << np.uint64(21)) ^ (words[1] >> np.uint64(11))
    numbers: NDArray[np.float64] = np.ldexp(bits.astype(np.float64), -53)
    return numbers
