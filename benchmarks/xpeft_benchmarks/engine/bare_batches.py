"""The PLM without adapters, its batches launched one after the other as the engine launches them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import cycle
from typing import Final

from xpeft_server.model.classifier import Classifier
from xpeft_server.model.launched import Launched
from xpeft_server.model.tokens.tokenizing import TokenizedText

from ..turns import Turn

_AHEAD: Final = 2
"""Batches in flight, so that the device never waits for the next."""


class BareBatches:
    """One thread's; nothing else may run on the classifier meanwhile.

    Args:
        batches: of already tokenised texts, all of one size; they come again and again.
    """

    def __init__(self, classifier: Classifier, batches: Sequence[Sequence[TokenizedText]]) -> None:
        self._classifier = classifier
        self._batches = cycle(batches)
        self._size = len(batches[0])

    def turn(self, seconds: float) -> Turn:
        """Measure from the end of one batch, for ``seconds``, to the end of another."""
        ahead: deque[Launched] = deque()
        busy: list[float] = []
        self._end_one(ahead)
        begun = ended = time.perf_counter()
        while ended - begun < seconds:
            busy.append(self._end_one(ahead))
            ended = time.perf_counter()
        while ahead:
            ahead.popleft().result()
        return Turn(len(busy) * self._size, ended - begun, len(busy), sum(busy))

    def _end_one(self, ahead: deque[Launched]) -> float:
        """Launch up to `_AHEAD` batches and wait for the oldest. Returns: its seconds on the device."""
        while len(ahead) < _AHEAD:
            ahead.append(self._classifier.bare(next(self._batches)))
        oldest = ahead.popleft()
        oldest.result()
        return oldest.ended.seconds_since(oldest.began)
