"""Numbers as they are served: float16, finite, one zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ProfileInvalid, shown

FLOAT16_MAX = float(np.finfo(np.float16).max)
FLOAT_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))


def check_floats(values: NDArray[Any], param: str) -> None:
    """Raises: ProfileInvalid unless float16 or float32, finite and within float16's range; names the first culprit."""
    if values.dtype not in FLOAT_DTYPES:
        raise ProfileInvalid(f"dtype is {values.dtype}, it must be float16 or float32", param)
    # NaN compares false, so it fails here with the infinities.
    within = np.abs(values) <= FLOAT16_MAX
    if not within.all():
        place = tuple(int(i) for i in np.argwhere(~within)[0])
        value = float(values[place])
        reason = "is beyond float16's range (at most 65504)" if np.isfinite(value) else "is not a finite number"
        raise ProfileInvalid(f"{list(place)} is {value}, which {reason}", param)


def as_halves(values: NDArray[Any]) -> NDArray[np.float16]:
    """A read-only float16 copy in which −0 is 0, so that equal values have equal bytes."""
    halves = values.astype(np.float16, order="C", copy=True)
    halves += np.float16(0)
    halves.flags.writeable = False
    return halves


def check_shape(values: NDArray[Any], names: str, known: dict[str, int], param: str) -> None:
    """Shape against letters: ``check_shape(x, "LR", {"L": 12}, …)`` wants ``[12, anything but zero]``."""
    if not isinstance(values, np.ndarray):
        raise ProfileInvalid(f"{shown(values)} is not a numpy array", param)
    wanted = "[" + ", ".join(f"{n}={known[n]}" if n in known else n for n in names) + "]"
    fits = values.ndim == len(names) and all(
        size > 0 and size == known.get(name, size) for name, size in zip(names, values.shape, strict=True)
    )
    if not fits:
        raise ProfileInvalid(f"shape is {list(values.shape)}, it must be {wanted}, no size of it zero", param)
