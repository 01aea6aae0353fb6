"""A batch between the device thread, which computes it, and the event loop, which answers it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..journey import Stage
from ..ticket import Entry

Outcome = NDArray[np.float32] | Exception
"""A text's logits ``[C]``, or why there are none."""


@dataclass(frozen=True, eq=False)
class Computed:
    """Outcomes in the order of the batch's entries, and the seconds on the device, fills included.

    ``stages``: what the seconds were spent on; several of a kind if the batch was computed in parts.
    """

    outcomes: list[Outcome]
    seconds: float
    stages: list[Stage]


@dataclass(frozen=True, eq=False)
class Batch:
    """``taken``: monotonic seconds when the device thread took it from the queue."""

    entries: list[Entry]
    taken: float
    computed: asyncio.Future[Computed]
