"""The slots of one step's profiles."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from xpeft_server.model.classifier import Classifier
from xpeft_server.model.slots import SlotFill

from ..device.slot_table import SlotTable
from ..metrics import Metrics
from ..profiles.cache import CachedProfile
from .sequence import Sequence


class StepSlots:
    """Pins the slots of a step's profiles, and fills those of cold ones before the step computes.

    Args: slots: shared with classification.
    """

    def __init__(self, classifier: Classifier, slots: SlotTable, metrics: Metrics) -> None:
        self._classifier = classifier
        self._slots = slots
        self._metrics = metrics
        self._fills: dict[str, SlotFill] = {}

    def begin(self, running: Iterable[Sequence]) -> None:
        """A new step: the slots of running sequences are pinned, all others may be taken."""
        self._slots.begin_batch()
        for sequence in running:
            self.slot_of(sequence)

    def may_hold(self, profile: CachedProfile) -> bool:
        """See `SlotTable.may_hold`."""
        return self._slots.may_hold(profile)

    def slot_of(self, sequence: Sequence) -> int | None:
        """As `place`, for an admitted sequence: its profile is placed again only if it lost its slot."""
        kept = None if sequence.version is None else self._slots.pin(sequence.version)
        return self.place(sequence.profile) if kept is None else kept.slot

    def place(self, profile: CachedProfile | None) -> int | None:
        """The profile's slot, pinned for this step and filled before the step computes; None if there is no room."""
        if profile is None:
            return self._classifier.buffers.bare_slot
        placed = self._slots.place(profile)
        if placed is None:
            return None
        placement, cold = placed
        if cold:
            self._fills[profile.version] = SlotFill(placement.slot, profile.profile, placement.head_rows)
        return placement.slot

    def forget_fills(self) -> None:
        """Nothing is computed in this step: what was placed for it is cold again."""
        self._slots.forget(self._fills)
        self._fills = {}

    @contextmanager
    def filled(self, sequences: Iterable[Sequence]) -> Iterator[None]:
        """Fill the cold slots for what is computed within; if that fails they are cold again."""
        try:
            self._fill(sequences)
            yield
        except BaseException:
            self._slots.forget(self._fills)
            raise
        finally:
            self._fills = {}

    def _fill(self, sequences: Iterable[Sequence]) -> None:
        if not self._fills:
            return
        began = time.monotonic()
        self._classifier.fill(list(self._fills.values()))
        ended = time.monotonic()
        self._metrics.profile_load["host"].observe(ended - began)
        for sequence in sequences:
            if sequence.filled is None and sequence.version in self._fills:
                sequence.filled = began, ended
