"""Arrays at fixed device addresses, brought there together by one copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..lanes import Lanes

_ALIGNMENT: Final = 64
_TORCH: Final = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}


class Field(NamedTuple):
    """``dtype`` is int64, int32 or float32."""

    name: str
    dtype: type[np.signedinteger | np.float32]
    shape: tuple[int, ...]


class Staged(NamedTuple):
    """Host memory with the device's layout, and the arrays in it, to be written completely."""

    memory: Tensor
    fields: Mapping[str, NDArray[Any]]


class StaticFields:
    """Arrays in a region of device memory; sets that are never used at once may share it.

    Args:
        memory: device bytes, ``size_of(fields)`` at least.

    Attributes:
        device: the arrays, views of ``memory``.
    """

    def __init__(self, fields: Iterable[Field], memory: Tensor, lanes: Lanes) -> None:
        self._lanes = lanes
        self._places = _places(fields)
        self._memory = memory[: _end(self._places)]
        self.device: Mapping[str, Tensor] = {
            field.name: memory[place].view(_TORCH[np.dtype(field.dtype)]).view(field.shape)
            for field, place in self._places
        }

    @staticmethod
    def size_of(fields: Iterable[Field]) -> int:
        """Bytes."""
        return _end(_places(fields))

    def stage(self) -> Staged:
        """Host memory for the next contents."""
        memory = self._lanes.staging(self._memory.numel())
        host = memory.numpy()
        fields = {field.name: host[place].view(field.dtype).reshape(field.shape) for field, place in self._places}
        return Staged(memory, fields)

    def load(self, staged: Staged) -> None:
        """Copy what was staged to the device, on the main lane."""
        self._memory.copy_(staged.memory, non_blocking=True)


def put_rows(to: NDArray[np.signedinteger], rows: NDArray[np.integer]) -> None:
    """Write ``rows``, then zeros."""
    to[: len(rows)] = rows
    to[len(rows) :] = 0


def _places(fields: Iterable[Field]) -> list[tuple[Field, slice]]:
    places, start = [], 0
    for field in fields:
        end = start + int(np.prod(field.shape)) * np.dtype(field.dtype).itemsize
        places.append((field, slice(start, end)))
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
    return places


def _end(places: list[tuple[Field, slice]]) -> int:
    return int(places[-1][1].stop)
