"""A sequence that cannot be computed ends; the others go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from xpeft_server.model.device_memory import is_out_of_memory, reclaim_memory

from ..errors import Unavailable, as_engine_error
from .advance import Advance
from .sequence import Sequence

logger = logging.getLogger(__name__)
Row = TypeVar("Row")


def row_or_end(sequence: Sequence, row: Callable[[], Row]) -> Row | Advance:
    """What ``row`` returns, or the end of the sequence if the device has no memory for it."""
    try:
        return row()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failure = error
    reclaim_memory(failure)
    return end_after(failure, sequence, tokens=len(sequence.ids))


def end_after(failure: Exception, sequence: Sequence, *, tokens: int) -> Advance:
    """Log the failure and end the sequence. Args: tokens: that were to be computed, or kept."""
    if is_out_of_memory(failure):
        message = "the device has no memory for %d tokens of one sequence: %s"
        logger.error(message, tokens, failure, extra=sequence.labels)
        failure = Unavailable(f"the device has no memory for {tokens} tokens of a text now")
    else:
        logger.error("a sequence could not be computed", exc_info=failure, extra=sequence.labels)
    return Advance(sequence, time.monotonic(), counted=False, error=as_engine_error(failure))
