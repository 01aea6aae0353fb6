"""Which packed tokens belong to which slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_ROWS = 16
"""Fewer rows than this (12, measured with MKL) take another code path in CPU GEMMs and give a row other last bits."""


@dataclass(frozen=True, slots=True)
class PaddedTiles:
    """The tiles of a batch as few rectangular stacks, for batched products.

    Args:
        slots: ``[K]`` int64, slot of each run, runs of one stack next to each other.
        slices: padded rows and runs of each stack; all runs of a stack have the same number of rows.
        row_slots: ``[G]`` int64, slot of each padded row.
        gather: ``[G]`` int64, padded row → packed token (padding repeats the run's first token).
        scatter: ``[T]`` int64, packed token → padded row.
    """

    slots: Tensor
    slices: tuple[tuple[slice, slice], ...]
    row_slots: Tensor
    gather: Tensor
    scatter: Tensor


@dataclass(frozen=True)
class Tiles:
    """Runs of packed tokens, one profile each; together they cover all T tokens in order.

    Args:
        runs: ``[K, 3]`` int32 (slot, start, length), starts ascending without gaps.
        device: where the operator's index tensors go.
    """

    runs: NDArray[np.int32]
    device: torch.device

    @classmethod
    def of(cls, slots: Sequence[int], lengths: Sequence[int], device: torch.device | str = "cpu") -> Tiles:
        """Neighbours in the same slot become one run.

        Args:
            slots, lengths: slot and number of tokens of each sequence, in packed order.
        """
        slot, length = np.asarray(slots, np.int32), np.asarray(lengths, np.int32)
        if slot.shape != length.shape or slot.ndim != 1 or not slot.size or (length < 1).any():
            raise ValueError(f"slots {slots!r} and lengths {lengths!r} do not describe a batch")
        first = np.flatnonzero(np.r_[True, slot[1:] != slot[:-1]])
        run_length = np.add.reduceat(length, first)
        start = np.r_[0, np.cumsum(run_length)[:-1]]
        return cls(np.stack([slot[first], start, run_length], axis=1).astype(np.int32), torch.device(device))

    @property
    def tokens(self) -> int:
        """T, all packed rows."""
        return int(self.runs[-1, 1] + self.runs[-1, 2])

    @cached_property
    def padded(self) -> PaddedTiles:
        """Stacks of equal height for the reference; built once a batch, used by every block."""
        rows = _stack_height(self.runs[:, 2])
        order = np.argsort(rows, kind="stable")
        slot, start, length, rows = *self.runs[order].T, rows[order]
        offset = np.r_[0, np.cumsum(rows)]
        within = np.arange(offset[-1]) - np.repeat(offset[:-1], rows)
        real = within < np.repeat(length, rows)
        gather = np.repeat(start, rows) + np.where(real, within, 0)
        scatter = np.empty(self.tokens, np.int64)
        scatter[gather[real]] = np.flatnonzero(real)
        first = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]]).tolist()
        return PaddedTiles(
            slots=self._index(slot),
            slices=tuple(
                (slice(int(offset[run]), int(offset[end])), slice(run, end))
                for run, end in zip(first, [*first[1:], len(rows)], strict=True)
            ),
            row_slots=self._index(np.repeat(slot, rows)),
            gather=self._index(gather),
            scatter=self._index(scatter),
        )

    def _index(self, values: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self.device, non_blocking=True)


def _stack_height(length: NDArray[np.int32]) -> NDArray[np.int64]:
    """Round up to a multiple of 16, above 128 to an eighth of the power of two below: less than an eighth is wasted."""
    wide = length.astype(np.int64)
    step = np.maximum(MIN_ROWS, 2 ** np.floor(np.log2(wide)).astype(np.int64) // 8)
    return -(-wide // step) * step
