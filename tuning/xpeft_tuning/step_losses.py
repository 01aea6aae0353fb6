"""Losses that stay on the device until one is read."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from torch import Tensor


class StepLosses:
    """Mean losses of one step's rows, ``[P]`` on the device. Reading the first fetches all of them."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def __getitem__(self, place: int) -> StepLoss:
        return StepLoss(self, place)

    @cached_property
    def read(self) -> list[float]:
        """On the host; waits for the device."""
        return self._values.tolist()


class StepLoss(NamedTuple):
    """``float()`` of it waits for the device."""

    losses: StepLosses
    place: int

    def __float__(self) -> float:
        return self.losses.read[self.place]
