"""Continuous batching: sequences join and leave at every step. The device thread's own."""

from __future__ import annotations

import logging
import time
from functools import partial

from xpeft_server.model.batches.step_packing import Chunk
from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder
from xpeft_server.model.device_memory import is_out_of_memory, reclaim_memory
from xpeft_server.model.kv.arena import ArenaRow
from xpeft_server.model.kv.cache import KvRow, KvStore
from xpeft_server.model.recorded import recorded
from xpeft_server.model.sampling.choice import Chosen, choose_tokens
from xpeft_server.model.slots import SlotFill

from ..device.faults import is_device_lost
from ..device.slot_table import SlotTable
from ..errors import InternalError, WrongBank, as_engine_error
from ..fairness.queue import FairQueue
from ..fairness.shares import Shares
from ..metrics import Metrics
from ..profiles.cache import CachedProfile
from ..requests import FinishReason
from .advance import Advance
from .no_memory import end_for_memory, row_or_end
from .sequence import Sequence
from .step_budget import StepPart, share_budget
from .yielding import yielding

logger = logging.getLogger(__name__)

_SPARE = 32
"""Who comes leaves one part in so many of the cache free, for those who are there and grow."""


class Generator:
    """Runs all sequences that are in; `step` reads or writes the next tokens of each.

    Tokens of prompts wait for the budget, tokens of answers never do. Where the cache is full, the sequence that came
    last gives its row away and is computed again later; what it draws at random depends on its seed and its length
    alone, so that it goes on as if nothing had happened. So does one of a tenant that is ahead of its share, where a
    sequence of another waits.

    Args:
        waiting: accepted sequences, in turn between tenants.
        shares: who had how much of the device; that of the queues.
        max_tokens: most tokens of prompts in a step.
        max_sequences: most sequences in a step.
    """

    def __init__(
        self,
        decoder: Decoder,
        classifier: Classifier,
        *,
        waiting: FairQueue[Sequence],
        slots: SlotTable,
        shares: Shares,
        max_tokens: int,
        max_sequences: int,
        metrics: Metrics,
    ) -> None:
        self._decoder = decoder
        self._classifier = classifier
        self._waiting = waiting
        self._slots = slots
        self._shares = shares
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._metrics = metrics
        self._running: list[Sequence] = []
        self._fills: dict[str, SlotFill] = {}
        self._show_room()

    @property
    def busy(self) -> bool:
        """Whether a step would have anything to do."""
        return bool(self._running) or bool(self._waiting)

    def warm_up(self) -> None:
        """See `Decoder.warm_up`."""
        self._decoder.warm_up()

    def step(self) -> list[Advance]:
        """Let go of who has gone, take in who fits, and compute one step for all.

        Returns: at most one advance a sequence.
        """
        self._part_with_the_gone()
        advances = self._make_room()
        self._pin_slots()
        advances += self._admit()
        advances += self._compute(share_budget(self._running, self._max_tokens, self._shares.is_ahead))
        for advance in advances:
            if advance.finish_reason or advance.error:
                self._release(advance.sequence)
        self._count(advances)
        return advances

    def _part_with_the_gone(self) -> None:
        for sequence in [each for each in self._running if each.withdrawn]:
            self._release(sequence)

    def _make_room(self) -> list[Advance]:
        """A row for everybody's next tokens; who came last goes first where that is not possible. Returns: whose row
        the device has no memory for."""
        cache: KvStore[KvRow | ArenaRow] = self._decoder.cache
        ended: list[Advance] = []
        for sequence in list(self._running):
            while sequence.row is not None:
                longer = row_or_end(sequence, partial(cache.lengthen, sequence.row, len(sequence.ids)))
                if isinstance(longer, Advance):
                    self._release(sequence)
                    ended.append(longer)
                elif longer is not None:
                    sequence.row = longer
                    break
                else:
                    self._preempt(self._running[-1])
        return ended

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.start_anew()
        self._waiting.put([sequence], front=True)
        self._metrics.preemptions.inc()

    def _pin_slots(self) -> None:
        self._slots.begin_batch()
        for sequence in self._running:
            self._slot_of(sequence)

    def _admit(self) -> list[Advance]:
        """Take in who has room for keys, values and profile. Returns: who never will."""
        refused: list[Advance] = []

        def accept(sequence: Sequence) -> bool:
            if sequence.profile is not None and not self._slots.may_hold(sequence.profile):
                error = WrongBank("the profile's head has more labels than this server holds", param="profile")
                refused.append(Advance(sequence, time.monotonic(), counted=False, error=error))
                return True
            row = self._row_for(sequence)
            while row is None and self._make_way(sequence):
                row = self._row_for(sequence)
            if row is None:
                return False
            if isinstance(row, Advance):
                refused.append(row)
                return True
            if self._place(sequence.profile) is None:
                self._decoder.cache.release(row)
                self._make_slot(sequence)
                return False
            sequence.row = row
            sequence.to_read = len(sequence.ids)
            sequence.taken = sequence.taken or time.monotonic()
            self._running.append(sequence)
            return True

        self._waiting.offer(accept)
        return refused

    def _row_for(self, sequence: Sequence) -> KvRow | ArenaRow | Advance | None:
        if len(self._running) >= self._max_sequences:
            return None
        cache: KvStore[KvRow | ArenaRow] = self._decoder.cache
        spare = cache.tokens // _SPARE if self._running else 0
        return row_or_end(sequence, partial(cache.claim, len(sequence.ids), spare=spare))

    def _make_way(self, sequence: Sequence) -> bool:
        """Preempt the latest of those who yield to this one."""
        latest = next(yielding(sequence, self._running, self._shares), None)
        if latest is not None:
            self._preempt(latest)
        return latest is not None

    def _make_slot(self, sequence: Sequence) -> None:
        """Preempt all sequences of a profile, if all yield to this one: at the next step its slot is pinned no more."""
        candidates = list(yielding(sequence, self._running, self._shares))
        staying = {None, *(each.version for each in set(self._running).difference(candidates))}
        leaving = [each for each in candidates if each.version not in staying]
        for each in leaving:
            if each.version == leaving[0].version:
                self._preempt(each)

    def _slot_of(self, sequence: Sequence) -> int | None:
        """As `_place`, for one that was taken in: its profile is asked for anew only where it lost its slot."""
        kept = None if sequence.version is None else self._slots.pin(sequence.version)
        return self._place(sequence.profile) if kept is None else kept.slot

    def _place(self, profile: CachedProfile | None) -> int | None:
        """The profile's slot, pinned for this step and filled before it computes; None if there is no room."""
        if profile is None:
            return self._classifier.buffers.bare_slot
        placed = self._slots.place(profile)
        if placed is None:
            return None
        placement, cold = placed
        if cold:
            self._fills[profile.version] = SlotFill(placement.slot, profile.profile, placement.head_rows)
        return placement.slot

    def _compute(self, parts: list[StepPart]) -> list[Advance]:
        """One step of these. If it fails, its halves are tried, until it is known whose fault it was."""
        if not parts:
            self._slots.forget(self._fills)
            self._fills = {}
            return []
        try:
            chosen = self._forward(parts)
        except Exception as error:
            if is_device_lost(error):
                raise
            failure = error
        else:
            return self._take_in(parts, chosen)
        if is_out_of_memory(failure):
            return self._compute_with_less(parts, failure)
        if len(parts) == 1:
            logger.error("a sequence could not be computed", exc_info=failure, extra=parts[0].sequence.labels)
            return [Advance(parts[0].sequence, time.monotonic(), counted=False, error=as_engine_error(failure))]
        half = len(parts) // 2
        logger.warning("a step of %d sequences failed and is halved: %r", len(parts), failure)
        return self._compute(parts[:half]) + self._compute(parts[half:])

    def _compute_with_less(self, parts: list[StepPart], failure: Exception) -> list[Advance]:
        """A step that the device has no memory for, in halves."""
        reclaim_memory(failure)
        tokens = sum(part.length for part in parts)
        if len(parts) == 1:
            return [end_for_memory(parts[0].sequence, tokens, failure)]
        half = len(parts) // 2
        logger.warning("the device has no memory for %d sequences, %d tokens: they are halved", len(parts), tokens)
        return self._compute(parts[:half]) + self._compute(parts[half:])

    def _take_in(self, parts: list[StepPart], chosen: Chosen) -> list[Advance]:
        now = time.monotonic()
        asking = [part.sequence for part in parts if part.asks]
        for part in parts:
            part.sequence.known += part.length
        return [self._advanced(sequence, int(chosen.ids[i]), chosen, i, now) for i, sequence in enumerate(asking)]

    def _forward(self, parts: list[StepPart]) -> Chosen:
        chunks = []
        for part in parts:
            sequence, slot = part.sequence, self._slot_of(part.sequence)
            assert slot is not None and sequence.row is not None  # noqa: S101, PT018
            chunks.append(Chunk(sequence.next_ids(part.length), sequence.known, sequence.row, slot, part.asks))
        try:
            self._fill([part.sequence for part in parts])
            logits = self._decoder.step(chunks)
        except BaseException:
            self._slots.forget(self._fills)
            raise
        finally:
            self._fills = {}
        with recorded("sample"):
            return choose_tokens(logits, [part.sequence.draw() for part in parts if part.asks])

    def _fill(self, sequences: list[Sequence]) -> None:
        if not self._fills:
            return
        began = time.monotonic()
        self._classifier.fill(list(self._fills.values()))
        ended = time.monotonic()
        self._metrics.profile_load["host"].observe(ended - began)
        for sequence in sequences:
            if sequence.filled is None and sequence.version in self._fills:
                sequence.filled = began, ended

    def _advanced(self, sequence: Sequence, token: int, chosen: Chosen, row: int, now: float) -> Advance:
        if token < 0:
            error = InternalError("the model's numbers for this text are not finite")
            return Advance(sequence, now, counted=False, error=error)
        sequence.ids.append(token)
        self._shares.charge(sequence.tenant, 1)
        if token in sequence.ends:
            return Advance(sequence, now, finish_reason="stop")
        finish_reason: FinishReason | None = "length" if len(sequence.ids) >= sequence.limit else None
        return Advance(sequence, now, token, logprobs=chosen.logprobs[row], finish_reason=finish_reason)

    def _release(self, sequence: Sequence) -> None:
        if sequence.row is not None:
            self._running.remove(sequence)
            self._decoder.cache.release(sequence.row)
            sequence.row = None

    def _count(self, advances: list[Advance]) -> None:
        self._metrics.generation_tokens.inc(sum(advance.counted for advance in advances))
        self._show_room()

    def _show_room(self) -> None:
        cache = self._decoder.cache
        self._metrics.kv_tokens["used"].set(cache.used)
        self._metrics.kv_tokens["free"].set(cache.tokens - cache.used)
