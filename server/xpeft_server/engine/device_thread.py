"""The one thread that owns the device: a batch of texts to classify and a step of generation, in turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.slots import SlotFill

from .batch import Batch, Computed, Outcome
from .device_memory import is_out_of_memory, reclaim_memory
from .device_profiler import DeviceProfiler
from .errors import Unavailable, WrongBank
from .generation.generation import Generation
from .journey import Stage
from .metrics import Metrics
from .queue import FairQueue
from .slot_table import SlotTable
from .ticket import Entry

logger = logging.getLogger(__name__)


class DeviceThread:
    """Works until the queue is closed. No timer: a batch grows exactly while the one before it is computed.

    Args:
        thread: an executor of one thread, best the one that loaded the model: the OpenMP runtime behind CPU torch keeps
            workers for every thread that ever computed, and lets them sleep between two operations (1.4 times the
            time for a single text) once there are more of them than cores.
        generation: None where the model does not generate.
        profiler: records the batches and steps.
        on_taken: called in the event loop with each batch when it is taken.
        on_death: called in the event loop if the thread ends otherwise than by the queue's closing.
    """

    def __init__(
        self,
        classifier: Classifier,
        queue: FairQueue[Entry],
        slots: SlotTable,
        *,
        thread: ThreadPoolExecutor,
        max_batch_tokens: int,
        metrics: Metrics,
        generation: Generation | None,
        profiler: DeviceProfiler | None = None,
        on_taken: Callable[[Batch], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._classifier = classifier
        self._queue = queue
        self._slots = slots
        self._max_batch_tokens = max_batch_tokens
        self._metrics = metrics
        self._generation = generation
        self._profiler = profiler
        self._stages: list[Stage] = []  # of the batch that is being computed
        self._on_taken = on_taken
        self._on_death = on_death
        self._thread = thread
        self._running: Future[None] | None = None

    async def start(self) -> None:
        """Warm up, then begin."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._classifier.warm_up)
        self._running = self._thread.submit(self._run, loop)

    def join(self, seconds: float) -> None:
        """The queue must have been closed."""
        if self._running is not None:
            wait([self._running], seconds)
        self._thread.shutdown(wait=False)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while not self._queue.closed:
                if entries := self._queue.take(self._max_batch_tokens, unless=self._generates):
                    with self._turn("batch"):
                        self._classify(entries, loop)
                if self._generation is not None and self._generation.generator.busy:
                    with self._turn("step"):
                        loop.call_soon_threadsafe(self._generation.advance, self._generation.generator.step())
        except BaseException as error:
            logger.critical("the device thread ended", exc_info=error)
            loop.call_soon_threadsafe(self._on_death, error)
        finally:
            if self._profiler is not None:
                self._profiler.close()

    def _turn(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._profiler is None else self._profiler.turn(name)

    def _generates(self) -> bool:
        return self._generation is not None and self._generation.generator.busy

    def _classify(self, entries: list[Entry], loop: asyncio.AbstractEventLoop) -> None:
        batch = Batch(entries, time.monotonic(), loop.create_future())
        loop.call_soon_threadsafe(self._on_taken, batch)
        self._stages = []
        outcomes = self._compute(entries)
        computed = Computed(outcomes, time.monotonic() - batch.taken, self._stages)
        self._queue.observe(sum(entry.tokens for entry in entries), computed.seconds, self._max_batch_tokens)
        loop.call_soon_threadsafe(_set, batch.computed, computed)
        self._observe(entries)

    def _compute(self, entries: list[Entry]) -> list[Outcome]:
        """One outcome an entry. A batch that fails is halved until it is known which text it was."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(entries):
            rest = entries[len(outcomes) :]
            self._slots.begin_batch()
            try:
                outcomes += self._compute_prefix(rest)
                continue
            except Exception as error:
                failure = error
            # Outside of the handler, and so without what the failed forward still held.
            outcomes += self._compute_after(failure, rest)
        return outcomes

    def _compute_after(self, failure: Exception, entries: list[Entry]) -> list[Outcome]:
        """The outcomes of a batch that failed: its halves', or the failure of its one text."""
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
        return self._compute(entries[:half]) + self._compute(entries[half:])

    def _compute_prefix(self, entries: list[Entry]) -> list[Outcome]:
        """As many texts as there are slots for, from the first on; the others are the next turn's."""
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
            self._fill(list(fills.values()))
            return self._logits(inputs)
        except BaseException:
            self._slots.forget(fills)
            raise

    def _fill(self, fills: list[SlotFill]) -> None:
        if fills:
            began = time.monotonic()
            self._classifier.fill(fills)
            ended = time.monotonic()
            self._metrics.profile_load["host"].observe(ended - began)
            self._stages.append(Stage("fill", began, ended, {"profiles": len(fills)}))

    def _logits(self, inputs: list[ClassifierInput]) -> list[Outcome]:
        began = time.monotonic()
        logits = self._classifier.logits(inputs)
        facts = {"texts": len(inputs), "tokens": sum(len(each.text) for each in inputs)}
        self._stages.append(Stage("forward", began, time.monotonic(), facts))
        return list(logits)

    def _observe(self, entries: list[Entry]) -> None:
        self._metrics.batch_size.observe(len(entries))
        self._metrics.batch_tokens.observe(sum(len(entry.text) for entry in entries))
        self._metrics.batch_profiles.observe(len({entry.ticket.profile.version for entry in entries}))


def device_executor() -> ThreadPoolExecutor:
    """A thread that can load a model and then become its device thread."""
    return ThreadPoolExecutor(1, thread_name_prefix="device")


def _set(future: asyncio.Future[Computed], computed: Computed) -> None:
    if not future.done():
        future.set_result(computed)
