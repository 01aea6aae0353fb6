"""A batch that the device is computing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .lanes import Mark


class Launched:
    """Values of several texts, computed or still being computed.

    Args:
        values: ``[ΣC]`` float32 on the host, C of each text in packed order; valid once ``ended`` has passed.
        counts: C of each packed text.
        order: packed text → its place among the results.
        began, ended: of the batch, on the main lane.
    """

    def __init__(self, values: Tensor, counts: Sequence[int], order: Sequence[int], began: Mark, ended: Mark) -> None:
        self._values = values
        self._counts = counts
        self._order = order
        self.began = began
        self.ended = ended

    def result(self) -> list[NDArray[np.float32]]:
        """Each text's values ``[C]``; waits for them. Raises: RuntimeError if the device failed meanwhile."""
        self.ended.wait()
        parts = np.split(self._values.numpy(), np.cumsum(self._counts)[:-1])
        results: list[NDArray[np.float32]] = [parts[0]] * len(parts)
        for place, part in zip(self._order, parts, strict=True):
            results[place] = part
        return results
