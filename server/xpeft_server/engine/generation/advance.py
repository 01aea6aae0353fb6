"""The result of a step for one sequence: the device thread's message to the event loop."""

from __future__ import annotations

from typing import NamedTuple

from xpeft_server.model.sampling.logprobs import RowLogprobs

from ..errors import EngineError
from ..requests import FinishReason
from .sequence import Sequence


class Advance(NamedTuple):
    """A new token of a sequence, its end, or both.

    Args:
        token: shown to the client; None if there is none to show, as when the model ended the text.
        counted: whether a token was generated, shown or not.
        at: monotonic seconds.
    """

    sequence: Sequence
    at: float
    token: int | None = None
    counted: bool = True
    logprobs: RowLogprobs | None = None
    finish_reason: FinishReason | None = None
    error: EngineError | None = None
