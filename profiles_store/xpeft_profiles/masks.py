"""What a pair of masks must be: both hard (a k-hot choice a row) or both soft (weights that sum to 1 a row)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ProfileInvalid
from .halves import FLOAT_DTYPES, as_halves, check_floats, check_shape

SUM_TOLERANCE = 1e-3
HARD_DTYPES = (np.dtype(np.bool_), np.dtype(np.uint8))


def served_masks(mask_a: NDArray[Any], mask_b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Check both masks and bring them into their served form.

    Args: ``[L, N]`` each; bool or uint8 (hard), float16 or float32 (soft).
    Returns: read-only ``[L, N]`` bool (hard) or float16 (soft).
    Raises: ProfileInvalid, naming mask, row and value.
    """
    check_shape(mask_a, "LN", {}, "mask_a")
    check_shape(mask_b, "LN", {"L": mask_a.shape[0], "N": mask_a.shape[1]}, "mask_b")
    for mask, param in ((mask_a, "mask_a"), (mask_b, "mask_b")):
        if mask.dtype not in HARD_DTYPES + FLOAT_DTYPES:
            raise ProfileInvalid(
                f"dtype is {mask.dtype}, it must be bool or uint8 (hard), float16 or float32 (soft)", param
            )
    if (mask_a.dtype in HARD_DTYPES) != (mask_b.dtype in HARD_DTYPES):
        raise ProfileInvalid(
            f"dtype is {mask_b.dtype} and mask_a's is {mask_a.dtype}: both masks must be hard or both soft",
            "mask_b",
        )
    if mask_a.dtype in FLOAT_DTYPES:
        return _served_soft(mask_a, "mask_a"), _served_soft(mask_b, "mask_b")
    hard_a, k = _served_hard(mask_a, "mask_a", None)
    hard_b, _ = _served_hard(mask_b, "mask_b", k)
    return hard_a, hard_b


def _served_hard(mask: NDArray[Any], param: str, k: int | None) -> tuple[NDArray[np.bool_], int]:
    if mask.dtype != np.bool_ and mask.max() > 1:
        row, column = (int(i) for i in np.argwhere(mask > 1)[0])
        raise ProfileInvalid(f"[{row}, {column}] is {int(mask[row, column])}, a hard mask has 0 and 1 only", param)
    counts = np.count_nonzero(mask, axis=1)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        raise ProfileInvalid(f"row {int(empty[0])} is empty, it selects 0 adapters", param)
    wanted, source = (int(counts[0]), f"{param}'s row 0") if k is None else (k, "mask_a")
    unequal = np.flatnonzero(counts != wanted)
    if unequal.size:
        row = int(unequal[0])
        raise ProfileInvalid(
            f"row {row} selects k={int(counts[row])} adapters, {source} selects k={wanted}:"
            " k must be the same in every row of both masks",
            param,
        )
    served = mask.astype(np.bool_, order="C", copy=True)
    served.flags.writeable = False
    return served, wanted


def _served_soft(mask: NDArray[Any], param: str) -> NDArray[np.float16]:
    """Rows are not renormalised.

    A row that float16 holds exactly may itself be the rounding of a row that summed to 1 within the tolerance:
    it is given the half unit in the last place that rounding may have cost each value. Without that, a profile
    could be refused when the file that was served for it comes back.
    """
    check_floats(mask, param)
    negative = mask < 0
    if negative.any():
        row, column = (int(i) for i in np.argwhere(negative)[0])
        raise ProfileInvalid(f"[{row}, {column}] is {float(mask[row, column])}, a soft mask is ≥ 0", param)
    served = as_halves(mask)
    rounded = np.where((served == mask).all(axis=1), np.spacing(served).sum(axis=1, dtype=np.float64) / 2, 0.0)
    sums = mask.sum(axis=1, dtype=np.float64)
    wrong = np.flatnonzero(np.abs(sums - 1.0) > SUM_TOLERANCE + rounded)
    if wrong.size:
        row = int(wrong[0])
        raise ProfileInvalid(
            f"row {row} sums to {sums[row]:.6g}, a soft mask's rows sum to 1 within {SUM_TOLERANCE:g}"
            + (" (a hard mask is uint8 or bool)" if np.isin(mask, (0, 1)).all() else ""),
            param,
        )
    empty = np.flatnonzero(~served.any(axis=1))
    if empty.size:
        raise ProfileInvalid(f"row {int(empty[0])} is empty in float16, its weights are too small", param)
    return served
