"""Continuous batching: sequences join and leave at every step. Owned by the device thread."""

from __future__ import annotations

import logging
import time
from functools import partial

from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder
from xpeft_server.model.device_memory import is_out_of_memory, reclaim_memory
from xpeft_server.model.kv.arena import ArenaRow
from xpeft_server.model.kv.cache import KvRow, KvStore
from xpeft_server.model.recorded import recorded
from xpeft_server.model.sampling.choice import Chosen, choose_tokens

from ..device.faults import is_device_lost
from ..device.slot_table import SlotTable
from ..errors import InternalError, WrongBank
from ..fairness.queue import FairQueue
from ..fairness.shares import Shares
from ..metrics import Metrics
from ..requests import FinishReason
from .advance import Advance
from .failure import end_after, row_or_end
from .preemption import preemptible
from .prefix_cache import PrefixCache
from .sequence import Sequence
from .step_budget import StepPart, share_budget
from .step_slots import StepSlots

logger = logging.getLogger(__name__)

_SPARE = 32
"""Admission leaves one part in so many of the cache free, so that running sequences can grow."""


class Generator:
    """Runs the admitted sequences; each `step` prefills or decodes the next tokens of each.

    Prefills wait for the token budget, decodes never do. When the cache is full the newest sequence is preempted: it
    gives up its row and is computed again later. Sampling depends on the sequence's seed and length alone, so a
    preempted sequence goes on as if nothing had happened. A sequence of a tenant that is ahead of its share is
    preempted, too, for another tenant's that waits.

    Args:
        waiting: accepted sequences, tenants in turn.
        shares: who had how much of the device; the queues' own.
        max_tokens: most prefill tokens in a step.
        max_sequences: most sequences in a step.
        prefix_caching: whether prompts that begin alike share the computation of their beginning.
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
        prefix_caching: bool,
        metrics: Metrics,
    ) -> None:
        self._decoder = decoder
        self._cache: KvStore[KvRow | ArenaRow] = decoder.cache
        self._waiting = waiting
        self._slots = StepSlots(classifier, slots, metrics)
        self._shares = shares
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._metrics = metrics
        self._prefixes = PrefixCache(self._cache, enabled=prefix_caching)
        self._running: list[Sequence] = []
        self._show_room()

    @property
    def busy(self) -> bool:
        """Whether a step would have anything to do."""
        return bool(self._running) or bool(self._waiting)

    def warm_up(self) -> None:
        """See `Decoder.warm_up`."""
        self._decoder.warm_up()

    def step(self) -> list[Advance]:
        """Release withdrawn sequences, admit waiting ones that fit, and compute one step for all.

        Returns: at most one advance a sequence.
        """
        self._release_withdrawn()
        advances = self._lengthen_rows()
        self._slots.begin(self._running)
        advances += self._admit()
        self._reuse_prefixes()
        advances += self._compute(share_budget(self._running, self._max_tokens, self._shares.is_ahead))
        for advance in advances:
            if advance.error:
                self._drop(advance.sequence)
            elif advance.finish_reason:
                self._leave(advance.sequence)
        self._count(advances)
        return advances

    def _release_withdrawn(self) -> None:
        for sequence in [each for each in self._running if each.withdrawn]:
            self._leave(sequence)

    def _lengthen_rows(self) -> list[Advance]:
        """Make room for everybody's next tokens, preempting the newest sequences where the cache is full.

        Returns: the ends of sequences whose rows the device has no memory to lengthen.
        """
        ended: list[Advance] = []
        for sequence in list(self._running):
            while sequence.row is not None:
                longer = row_or_end(sequence, partial(self._cache.lengthen, sequence.row, len(sequence.ids)))
                if isinstance(longer, Advance):
                    self._drop(sequence)
                    ended.append(longer)
                elif longer is not None:
                    sequence.row = longer
                    break
                elif not self._prefixes.evict():
                    self._preempt(self._running[-1])
        return ended

    def _preempt(self, sequence: Sequence) -> None:
        self._drop(sequence)
        sequence.start_anew()
        self._waiting.put([sequence], front=True)
        self._metrics.preemptions.inc()

    def _admit(self) -> list[Advance]:
        """Admit waiting sequences while there is room for their keys, values and profiles.

        Returns: the ends of those that can never be admitted.
        """
        refused: list[Advance] = []

        def accept(sequence: Sequence) -> bool:
            if sequence.profile is not None and not self._slots.may_hold(sequence.profile):
                error = WrongBank("the profile's head has more labels than this server holds", param="profile")
                refused.append(Advance(sequence, time.monotonic(), counted=False, error=error))
                return True
            self._prefixes.find(sequence)  # which makes it the last to be evicted
            row = self._row_for(sequence)
            while row is None and self._preempt_for_row(sequence):
                row = self._row_for(sequence)
            if row is None:
                return False
            if isinstance(row, Advance):
                refused.append(row)
                return True
            if self._slots.place(sequence.profile) is None:
                self._cache.release(row)
                self._preempt_for_slot(sequence)
                return False
            sequence.row = row
            sequence.admitted_length = len(sequence.ids)
            if sequence.taken is None:
                sequence.taken = time.monotonic()
                self._metrics.prefix_cache_queries.inc(len(sequence.ids))
            self._running.append(sequence)
            return True

        self._waiting.offer(accept)
        return refused

    def _reuse_prefixes(self) -> None:
        """Take what is known of the prompts that are being prefilled; by now others may have computed more of them."""
        for sequence in [each for each in self._running if each.uncached > 1]:
            reused = self._prefixes.reuse(sequence)
            if reused and sequence.taken is not None:
                self._shares.refund(sequence.tenant, reused, sequence.taken)
            if not sequence.preemptions:
                sequence.reused += reused
                self._metrics.prefix_cache_hits.inc(reused)

    def _row_for(self, sequence: Sequence) -> KvRow | ArenaRow | Advance | None:
        if len(self._running) >= self._max_sequences:
            return None
        spare = self._cache.tokens // _SPARE if self._running else 0
        claim = partial(self._cache.claim, len(sequence.ids), spare=spare)
        row = row_or_end(sequence, claim)
        while row is None and self._prefixes.evict():
            row = row_or_end(sequence, claim)
        return row

    def _preempt_for_row(self, waiting: Sequence) -> bool:
        """Preempt the newest sequence that can be preempted for this one. Returns: whether there was one."""
        newest = next(preemptible(waiting, self._running, self._shares), None)
        if newest is not None:
            self._preempt(newest)
        return newest is not None

    def _preempt_for_slot(self, waiting: Sequence) -> None:
        """Preempt all sequences of one profile, if each of them can be: its slot is not pinned at the next step."""
        candidates = list(preemptible(waiting, self._running, self._shares))
        staying = {None, *(each.version for each in set(self._running).difference(candidates))}
        leaving = [each for each in candidates if each.version not in staying]
        for each in leaving:
            if each.version == leaving[0].version:
                self._preempt(each)

    def _compute(self, parts: list[StepPart]) -> list[Advance]:
        """One step of these. A step that fails is halved, until one sequence fails alone."""
        if not parts:
            self._slots.forget_fills()
            return []
        try:
            chosen = self._forward(parts)
        except Exception as error:
            if is_device_lost(error):
                raise
            failure = error
        else:
            return self._advances(parts, chosen)
        count, tokens = len(parts), sum(part.length for part in parts)
        no_memory = is_out_of_memory(failure)
        if no_memory:
            reclaim_memory(failure)
        if count == 1:
            return [end_after(failure, parts[0].sequence, tokens=tokens)]
        if no_memory:
            logger.warning("the device has no memory for %d sequences, %d tokens: they are halved", count, tokens)
        else:
            logger.warning("a step of %d sequences failed and is halved: %r", count, failure)
        return self._compute(parts[: count // 2]) + self._compute(parts[count // 2 :])

    def _advances(self, parts: list[StepPart], chosen: Chosen) -> list[Advance]:
        now = time.monotonic()
        asking = [part.sequence for part in parts if part.asks]
        for part in parts:
            part.sequence.cached += part.length
        advances = [self._advanced(sequence, int(chosen.ids[i]), chosen, i, now) for i, sequence in enumerate(asking)]
        for advance in advances:
            if advance.error is None:
                self._prefixes.add(advance.sequence)
        return advances

    def _forward(self, parts: list[StepPart]) -> Chosen:
        chunks = [part.sequence.chunk(part.length, self._slots.slot_of(part.sequence)) for part in parts]
        with self._slots.filled([part.sequence for part in parts]):
            stepped = self._decoder.step(chunks)
        with recorded("sample"):
            chosen = choose_tokens(stepped.logits, [part.sequence.draw() for part in parts if part.asks])
        for part, launched in zip(parts, stepped.prompt_logprobs, strict=True):
            part.sequence.prompt_logprobs += [] if launched is None else launched.result()
        return chosen

    def _advanced(self, sequence: Sequence, token: int, chosen: Chosen, row: int, now: float) -> Advance:
        if token < 0:
            error = InternalError("the model's numbers for this text are not finite")
            return Advance(sequence, now, counted=False, error=error)
        if len(sequence.ids) >= sequence.limit:
            return Advance(sequence, now, counted=False, finish_reason="length")
        sequence.ids.append(token)
        self._shares.charge(sequence.tenant, 1)
        if token in sequence.ends:
            return Advance(sequence, now, finish_reason="stop")
        finish_reason: FinishReason | None = "length" if len(sequence.ids) >= sequence.limit else None
        return Advance(sequence, now, token, logprobs=chosen.logprobs[row], finish_reason=finish_reason)

    def _leave(self, sequence: Sequence) -> None:
        """It ended, or nobody waits for it any more: others may begin with its prompt."""
        if sequence.row is not None:
            self._running.remove(sequence)
            self._prefixes.keep(sequence)

    def _drop(self, sequence: Sequence) -> None:
        """It failed or was preempted: nothing of it is kept."""
        if sequence.row is not None:
            self._running.remove(sequence)
            self._prefixes.drop(sequence)

    def _count(self, advances: list[Advance]) -> None:
        self._metrics.generation_tokens.inc(sum(advance.counted for advance in advances))
        self._show_room()

    def _show_room(self) -> None:
        self._metrics.kv_tokens["used"].set(self._cache.used - self._prefixes.tokens)
        self._metrics.kv_tokens["cached"].set(self._prefixes.tokens)
        self._metrics.kv_tokens["free"].set(self._cache.tokens - self._cache.used)
