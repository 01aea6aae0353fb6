"""How attention divides a packed row: groups of equal length or, with gradients, a few padded buckets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_kernels import Padding, Sequences

_SPREAD = 1.25
"""Longest over shortest sequence of a bucket, at most."""


class Bucket(NamedTuple):
    """Sequences of similar length as a rectangle. ``real`` ``[sequences, length]`` bool is false on padding."""

    sequences: int
    length: int
    real: Tensor


class Buckets(NamedTuple):
    """All sequences of a row, in a few rectangles that follow each other in ``padding``."""

    padding: Padding
    buckets: tuple[Bucket, ...]


class SequenceGroups(tuple[tuple[int, int], ...]):
    """(sequences, length) of each group of neighbours of equal length, in packed order, covering all rows."""

    @classmethod
    def of(cls, length: NDArray[np.int64]) -> SequenceGroups:
        first = np.flatnonzero(np.r_[True, length[1:] != length[:-1]])
        count = np.diff(np.r_[first, len(length)])
        return cls(zip(count.tolist(), length[first].tolist(), strict=True))

    def buckets_on(self, device: torch.device) -> Buckets:
        """The buckets on a device, moved there once a batch."""
        if device not in self._moved:
            padding, buckets = self.buckets
            self._moved[device] = Buckets(
                Padding(*(each.to(device, non_blocking=True) for each in padding)),
                tuple(each._replace(real=each.real.to(device, non_blocking=True)) for each in buckets),
            )
        return self._moved[device]

    def sequences_on(self, device: torch.device) -> Sequences:
        """The lengths in the operators' form, made once a batch."""
        if device not in self._placed:
            self._placed[device] = Sequences.of([length for count, length in self for _ in range(count)], device)
        return self._placed[device]

    @cached_property
    def _placed(self) -> dict[torch.device, Sequences]:
        return {}

    @cached_property
    def _moved(self) -> dict[torch.device, Buckets]:
        return {}

    @cached_property
    def buckets(self) -> Buckets:
        """On the CPU; made once a batch, used by every block."""
        length = np.repeat([each for _, each in self], [count for count, _ in self])
        start = np.cumsum(length) - length
        gather, buckets, offset = [], [], 0
        scatter = np.empty(length.sum(), np.int64)
        for chosen in _similar(length):
            height = int(length[chosen].max())
            within = np.arange(height)
            real = within < length[chosen, None]
            rows = start[chosen, None] + np.where(real, within, 0)
            gather.append(rows.ravel())
            scatter[rows[real]] = offset + np.flatnonzero(real)
            buckets.append(Bucket(len(chosen), height, torch.from_numpy(real)))
            offset += rows.size
        padding = Padding(torch.from_numpy(np.concatenate(gather)), torch.from_numpy(scatter))
        return Buckets(padding, tuple(buckets))


def _similar(length: NDArray[np.int64]) -> Iterator[NDArray[np.intp]]:
    """Sequences in order of length, cut wherever one is too long for the bucket before it."""
    order = np.argsort(length, kind="stable")
    ascending = length[order]
    start = 0
    while start < len(order):
        end = int(np.searchsorted(ascending, _SPREAD * ascending[start], side="right"))
        yield order[start:end]
        start = end
