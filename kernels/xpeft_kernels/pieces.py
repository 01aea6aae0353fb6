"""Runs of rows cut into pieces, one for each program of a kernel, and tables of pieces on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PlacedPieces:
    """A table of pieces that is on the device already, such as a CUDA graph's static input.

    Pieces of length 0 are padding. Rows that no piece covers are not written: an operator's result is undefined there.

    Args:
        tokens: T, rows of the operator's tensors.
        rows: most rows of a piece; only kernels with tiles of as many rows accept the table.
        table: ``[K, 3]`` int32.
    Raises: ValueError if ``table`` has another shape or dtype.
    """

    tokens: int
    rows: int
    table: Tensor

    def __post_init__(self) -> None:
        table = self.table
        if table.ndim != 2 or table.shape[1] != 3 or table.dtype != torch.int32 or not table.is_contiguous():
            raise ValueError(f"table is {tuple(table.shape)} {table.dtype}, it must be [K, 3] torch.int32, contiguous")

    def pieces(self, rows: int) -> Tensor:
        """The table. Raises: ValueError if it was not cut for ``rows``."""
        if rows != self.rows:
            raise ValueError(f"the table has pieces of {self.rows} rows, the kernel takes {rows}")
        return self.table


def cut(length: NDArray[np.int32], rows: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Cut runs into pieces of at most ``rows`` rows.

    Returns: of each piece its run, ``[K]``, and its first row within the run, ``[K]``. An empty run has no piece.
    """
    count = -(-length.astype(np.int64) // rows)
    owner = np.repeat(np.arange(length.size), count)
    return owner, rows * (np.arange(owner.size) - np.repeat(np.cumsum(count) - count, count))


def placed(table: NDArray[np.int32], device: torch.device) -> Tensor:
    """A copy on the device, without waiting for it."""
    made = torch.from_numpy(table)
    return (made.pin_memory() if device.type == "cuda" else made).to(device, non_blocking=True)
