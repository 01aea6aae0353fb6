"""Which packed tokens belong to which slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .padding import Padding
from .pieces import PlacedPieces, cut, placed

MIN_ROWS = 16
"""CPU GEMMs with fewer rows (12, measured with MKL) take another code path, which changes a row's last bits."""

STACK_COST = 96
"""Padded rows that take as long as the overhead of a stack's ten operations (MiniLM, two cores)."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Neighbouring runs padded to one height: a rectangle for batched products.

    Args:
        slots: ``[K]`` int64, slot of each run.
        height: padded rows of each run.
        tokens: T', packed tokens of all K runs, which follow each other.
        gather: ``[K · height]`` int64, padded row → packed token (padding repeats the run's first token).
        scatter: ``[T']`` int64, packed token, counted from the stack's first → padded row.
    """

    slots: Tensor
    height: int
    tokens: int
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
    _pieces: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

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

    def pieces(self, rows: int) -> Tensor:
        """``[K', 3]`` int32 on the device, see `cut_runs`; copied without waiting, once a batch for each ``rows``."""
        if rows not in self._pieces:
            self._pieces[rows] = placed(cut_runs(self.runs, rows), self.device)
        return self._pieces[rows]

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """All runs, for the reference; built once a batch, used by every block. Few if runs are sorted by length."""
        height = _run_height(self.runs[:, 2])
        cuts = _stack_cuts(height)
        return tuple(self._stack(run, end, int(height[run:end].max())) for run, end in pairwise(cuts))

    @cached_property
    def padding(self) -> Padding:
        """The padding of all stacks together, for passes with gradients."""
        starts = np.r_[0, np.cumsum([each.gather.numel() for each in self.stacks])[:-1]].tolist()
        scatter = [each.scatter + start for each, start in zip(self.stacks, starts, strict=True)]
        return Padding(torch.cat([each.gather for each in self.stacks]), torch.cat(scatter))

    def _stack(self, run: int, end: int, height: int) -> Stack:
        slot, start, length = self.runs[run:end].astype(np.int64).T
        within = np.arange(height)
        real = within < length[:, None]
        gather = start[:, None] + np.where(real, within, 0)
        return Stack(
            slots=self._index(slot),
            height=height,
            tokens=int(length.sum()),
            gather=self._index(gather.ravel()),
            scatter=self._index(np.flatnonzero(real)),
        )

    def _index(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


class PlacedTiles(PlacedPieces):
    """Pieces of runs, as `cut_runs` makes them, that are on the device already."""


def cut_runs(runs: NDArray[np.int32], rows: int) -> NDArray[np.int32]:
    """``[K, 3]`` runs (slot, start, length) → ``[K', 3]`` the same of pieces of at most ``rows`` tokens."""
    slot, start, length = runs.T
    owner, first = cut(length, rows)
    size = np.minimum(length[owner] - first, rows)
    return np.stack([slot[owner], start[owner] + first, size], axis=1).astype(np.int32)


def _run_height(length: NDArray[np.int32]) -> NDArray[np.int64]:
    """At least 16 rows and a multiple of 8, above 64 of an eighth of the power of two below."""
    wide = length.astype(np.int64)
    step = np.maximum(8, 2 ** np.floor(np.log2(wide)).astype(np.int64) // 8)
    return np.maximum(MIN_ROWS, -(-wide // step) * step)


def _stack_cuts(height: NDArray[np.int64]) -> list[int]:
    """Where to cut neighbours so that padded rows plus `STACK_COST` for each stack are fewest. Includes both ends."""
    edge = np.r_[0, np.flatnonzero(np.diff(height)) + 1, height.size]
    tall = height[edge[:-1]]
    cost, before = np.zeros(edge.size, np.int64), np.zeros(edge.size, np.intp)
    for end in range(1, edge.size):
        highest = np.maximum.accumulate(tall[:end][::-1])[::-1]
        sums = cost[:end] + (edge[end] - edge[:end]) * highest + STACK_COST
        before[end] = sums.argmin()
        cost[end] = sums[before[end]]
    cuts = [edge.size - 1]
    while cuts[-1]:
        cuts.append(int(before[cuts[-1]]))
    return [int(edge[cut]) for cut in reversed(cuts)]
