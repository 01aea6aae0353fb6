"""The arrays of many profiles of one shape, by tensor: ``[P, …]`` each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .halves import FLOAT16_MAX, as_halves
from .masks import SUM_TOLERANCE

MASKS = ("mask_a", "mask_b")

Arrays = dict[str, NDArray[Any]]


def are_in_range(arrays: Arrays) -> NDArray[np.bool_]:
    """``[P]``: whether float16 can hold all numbers, NaN not among them."""
    good = np.ones(len(arrays["mask_a"]), np.bool_)
    for array in arrays.values():
        if array.dtype.kind == "f":
            good &= everywhere(np.abs(array) <= FLOAT16_MAX)
    return good


def are_masks(arrays: Arrays) -> NDArray[np.bool_]:
    """``[P]``"""
    a, b = (arrays[name] for name in MASKS)
    if a.dtype.kind == "u":
        counts = np.stack([np.count_nonzero(mask, axis=2) for mask in (a, b)], axis=1)
        k = counts[:, :1, :1]
        return everywhere(a <= 1) & everywhere(b <= 1) & everywhere(counts == k) & (counts[:, 0, 0] > 0)
    return _are_soft(a) & _are_soft(b)


def _are_soft(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether rows sum to 1 within half of what is allowed: about what lies at the edge the exact rule decides."""
    sums = mask.sum(axis=2, dtype=np.float64)
    near = np.abs(sums - 1.0) <= SUM_TOLERANCE / 2
    return everywhere(mask >= 0) & everywhere(near) & everywhere(as_halves(mask).any(axis=2))


def everywhere(true: Any) -> NDArray[np.bool_]:
    """``[P, …] → [P]``"""
    every: NDArray[np.bool_] = true.reshape(len(true), -1).all(axis=1)
    return every


def bytes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    """``[P, …] → [P, bytes]``, little-endian."""
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
    return little.reshape(len(values), -1).view(np.uint8)
