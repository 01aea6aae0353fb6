"""Fills slots and launches batches; a batch that fails is halved until one text fails alone."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.device_memory import is_out_of_memory, reclaim_memory
from xpeft_server.model.launched import Launched
from xpeft_server.model.slots import Filled, SlotFill

from ..errors import Unavailable, WrongBank
from ..journey import Stage
from ..ticket import Entry
from .batch import Outcome
from .faults import is_device_lost
from .slot_table import SlotTable

logger = logging.getLogger(__name__)


class Flight(NamedTuple):
    """Texts that the device is computing, and the fill of ``profiles`` slots that they waited for."""

    launched: Launched
    texts: int
    tokens: int
    filled: Filled | None
    profiles: int


Part = Flight | Exception
"""Some texts of a batch, or the failure of one text."""


class Landed(NamedTuple):
    """The results of a batch's parts.

    Args:
        busy: seconds that the device computed, without fills.
        fills: seconds of each fill.
    """

    outcomes: list[Outcome]
    stages: list[Stage]
    busy: float
    fills: list[float]


class Launcher:
    """Owned by the device thread."""

    def __init__(self, classifier: Classifier, slots: SlotTable) -> None:
        self._classifier = classifier
        self._slots = slots

    def launch(self, entries: list[Entry]) -> list[Part]:
        """Launch all entries.

        Returns: parts that cover them in order; more than one if slots are few or something failed.
        Raises: an error after which the device is lost.
        """
        parts: list[Part] = []
        start = 0
        while start < len(entries):
            rest = entries[start:]
            self._slots.begin_batch()
            try:
                flight = self._launch_prefix(rest)
                parts.append(flight)
                start += flight.texts
                continue
            except Exception as error:
                if is_device_lost(error):
                    raise
                failure = error
            # Outside the handler, so that tensors of the failed forward are free.
            return parts + self._launch_after(failure, rest)
        return parts

    def _launch_after(self, failure: Exception, entries: list[Entry]) -> list[Part]:
        """Try a failed batch again in halves, or report the failure of its only text."""
        count, half = len(entries), len(entries) // 2
        tokens = sum(entry.tokens for entry in entries)
        first = entries[0].ticket
        labels = {"request_id": first.journey.id, "tenant": first.tenant}
        if is_out_of_memory(failure):
            reclaim_memory(failure)
            if count == 1:
                logger.error("the device has no memory for one text of %d tokens: %s", tokens, failure, extra=labels)
                return [Unavailable(f"the device has no memory for a text of {tokens} tokens now")]
            logger.warning("the device has no memory for %d texts, %d tokens: they are halved", count, tokens)
        elif count == 1:
            message = "a text for profile %r of tenant %r cannot be computed"
            logger.error(message, first.request.profile.name, first.tenant, exc_info=failure, extra=labels)
            return [failure]
        else:
            logger.warning("a batch of %d texts failed and is halved: %r", count, failure)
        return self.launch(entries[:half]) + self.launch(entries[half:])

    def _launch_prefix(self, entries: list[Entry]) -> Flight:
        """Launch the first texts, as many as there are slots for."""
        inputs: list[ClassifierInput] = []
        fills: dict[str, SlotFill] = {}
        for entry in entries:
            cached = entry.ticket.profile
            placed = self._slots.place(cached)
            if placed is None:
                break
            (slot, head_rows), cold = placed
            if cold:
                fills[cached.version] = SlotFill(slot, cached.profile, head_rows)
            shared = cached.profile.shared_head
            rows = head_rows if shared is None else self._classifier.buffers.shared_head_rows[shared]
            inputs.append(ClassifierInput(entry.text, slot, rows))
        if not inputs:
            raise WrongBank("the profile's head has more labels than this server holds", param="profile")
        try:
            filled = self._classifier.fill(list(fills.values()), overlap=True) if fills else None
            launched = self._classifier.launch(inputs)
        except BaseException:
            self._slots.forget(fills)
            raise
        return Flight(launched, len(inputs), sum(len(each.text) for each in inputs), filled, len(fills))


def land(parts: list[Part]) -> Landed:
    """Wait for all parts and collect their results. Raises: RuntimeError if the device failed meanwhile."""
    outcomes: list[Outcome] = []
    stages: list[Stage] = []
    fills: list[float] = []
    busy = 0.0
    for part in parts:
        if isinstance(part, Exception):
            outcomes.append(part)
            continue
        launched = part.launched
        outcomes += launched.result()
        landed = time.monotonic()
        computing = launched.ended.seconds_since(launched.began)
        if part.filled is not None:
            filled = landed - launched.ended.seconds_since(part.filled.ended)
            fills.append(part.filled.ended.seconds_since(part.filled.began))
            stages.append(Stage("fill", filled - fills[-1], filled, {"profiles": part.profiles}))
        facts = {"texts": part.texts, "tokens": part.tokens}
        stages.append(Stage("forward", landed - computing, landed, facts))
        busy += computing
    return Landed(outcomes, stages, busy, fills)
