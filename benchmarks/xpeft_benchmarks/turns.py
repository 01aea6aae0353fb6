"""What one variant did in its turn of a round."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """Texts that were computed from the end of one batch to the end of another.

    Args:
        texts: in ``batches``, within ``seconds``.
        busy_seconds: of these, those in which the device computed batches.
        host_seconds: that the thread which owns the device needed to launch them.
        made: profiles that were made from their masks meanwhile, as they were in no slot.
        read: requests whose profile had to be read from the store.

    The last three are not a number where no engine tells them.
    """

    texts: int
    seconds: float
    batches: int
    busy_seconds: float
    host_seconds: float = math.nan
    made: float = math.nan
    read: float = math.nan

    @property
    def speed(self) -> float:
        """Texts a second."""
        return self.texts / self.seconds

    @property
    def hidden(self) -> float:
        """Part of the time in which the device did not wait for the host, 0 to 1."""
        return min(1.0, self.busy_seconds / self.seconds)
