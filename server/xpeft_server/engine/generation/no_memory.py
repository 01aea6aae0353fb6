"""A sequence for which the device has no memory: it ends, and the others go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from xpeft_server.model.device_memory import is_out_of_memory, reclaim_memory

from ..errors import Unavailable
from .advance import Advance
from .sequence import Sequence

logger = logging.getLogger(__name__)

Row = TypeVar("Row")


def row_or_end(sequence: Sequence, row: Callable[[], Row]) -> Row | Advance:
    """What ``row`` gives, or the end of the sequence if there is no memory for that."""
    try:
        return row()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = error
    reclaim_memory(failure)
    return end_for_memory(sequence, len(sequence.ids), failure)


def end_for_memory(sequence: Sequence, tokens: int, failure: Exception) -> Advance:
    """Args: tokens: for which there is none."""
    message = "the device has no memory for %d tokens of one sequence: %s"
    logger.error(message, tokens, failure, extra=sequence.labels)
    error = Unavailable(f"the device has no memory for {tokens} tokens of a text now")
    return Advance(sequence, time.monotonic(), counted=False, error=error)
