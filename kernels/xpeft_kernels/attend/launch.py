"""How large a program of attend_packed is; without importing Triton."""

from __future__ import annotations

from typing import NamedTuple

_SIZES = {
    2: {32: (64, 64, 2), 64: (64, 32, 3), 128: (32, 32, 3), 256: (16, 16, 2)},
    4: {32: (32, 32, 2), 64: (32, 16, 2), 128: (16, 16, 2), 256: (16, 16, 2)},
}
"""Bytes of an element → padded d (16 goes with 32) → rows, keys, stages. Three programs of these sizes fit on a
multiprocessor; at d=256 in float32, which multiplies without tensor cores, only two do."""


class Launch(NamedTuple):
    """Sizes of one program: query rows, key rows at a time, padded d, warps, stages of loads in flight.

    They depend on d and the dtype alone: a sequence's bits are the same whatever else is in the batch.
    """

    rows: int
    keys: int
    width: int
    warps: int
    stages: int

    @classmethod
    def of(cls, d: int, itemsize: int) -> Launch:
        """Raises: ValueError if the kernel has no form for heads of d elements of ``itemsize`` bytes."""
        width = max(16, 1 << (d - 1).bit_length())
        if itemsize not in _SIZES or not 1 <= d <= 256:
            raise ValueError(f"heads of {d} elements of {itemsize} bytes: the kernel takes 1 to 256 of 2 or 4 bytes")
        rows, keys, stages = _SIZES[itemsize][max(32, width)]
        return cls(rows=rows, keys=keys, width=width, warps=4, stages=stages)


def query_rows(d: int, itemsize: int) -> int:
    """Most rows of a piece, for `cut_sequences` and `PlacedSequences`.

    Raises: ValueError if the kernel takes no heads of d elements of ``itemsize`` bytes.
    """
    return Launch.of(d, itemsize).rows
