"""Which packed rows belong to one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .pieces import PlacedPieces, cut, placed


@dataclass(frozen=True)
class Sequences:
    """Sequences end to end; together they cover all T rows.

    Args:
        lengths: ``[Q]`` int32, rows of each, in packed order.
        device: where the operator's index tensors go.
    """

    lengths: NDArray[np.int32]
    device: torch.device
    _pieces: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Sequences:
        """Raises: ValueError without sequences, or for an empty one."""
        length = np.asarray(lengths, np.int32)
        if length.ndim != 1 or not length.size or (length < 1).any():
            raise ValueError(f"lengths {lengths!r} do not describe a batch")
        return cls(length, torch.device(device))

    @property
    def tokens(self) -> int:
        """T, all packed rows."""
        return int(self.lengths.sum())

    def pieces(self, rows: int) -> Tensor:
        """``[K, 3]`` int32 on the device, see `cut_sequences`; copied without waiting, once for each ``rows``."""
        if rows not in self._pieces:
            self._pieces[rows] = placed(cut_sequences(self.lengths, rows), self.device)
        return self._pieces[rows]


class PlacedSequences(PlacedPieces):
    """Pieces of sequences, as `cut_sequences` makes them, that are on the device already."""


def cut_sequences(lengths: ArrayLike, rows: int) -> NDArray[np.int32]:
    """Sequences in pieces of at most ``rows`` rows.

    Args:
        lengths: ``[Q]``, rows of each sequence, in packed order; one of length 0 has no piece.
    Returns: ``[K, 3]`` (the sequence's first row, its rows, the piece's first row counted from the sequence's first).
    """
    length = np.asarray(lengths, np.int32)
    owner, first = cut(length, rows)
    start = np.cumsum(length, dtype=np.int64) - length
    return np.stack([start[owner], length[owner], first], axis=1).astype(np.int32)
