"""The one thread that owns the device; it alternates between classify batches and generation steps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from xpeft_server.model.classifier import Classifier

from ..fairness.queue import FairQueue
from ..generation.generation import Generation
from ..metrics import Metrics
from ..ticket import Entry
from .batch import Batch, Computed
from .launcher import Landed, Launcher, Part, land
from .profiler import DeviceProfiler
from .slot_table import SlotTable
from .times import DeviceTimes

logger = logging.getLogger(__name__)

_IN_FLIGHT: Final = 2
"""Batches that an asynchronous device has at once."""


class DeviceThread:
    """Runs until the queue is closed. No timer: a batch grows exactly while the ones before it are computed.

    An asynchronous device has two batches in flight, so that it never waits for the host: while it computes one, the
    next is launched, and requests that come meanwhile make up the one after that.

    Attributes:
        times: how device and host spent their time.

    Args:
        thread: an executor of one thread, preferably the one that loaded the model. The OpenMP runtime of CPU torch
            keeps workers for every thread that ever computed; once they outnumber the cores they sleep between two
            operations, and a single text takes 1.4 times as long.
        generation: None if the model does not generate.
        profiler: records batches and steps.
        on_taken: called in the event loop with each batch when it is taken.
        on_death: called in the event loop if the thread ends for any reason but the queue's closing.
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
        self.times = DeviceTimes()
        self._classifier = classifier
        self._launcher = Launcher(classifier, slots)
        self._queue = queue
        self._max_batch_tokens = max_batch_tokens
        self._metrics = metrics
        self._generation = generation
        self._profiler = profiler
        self._on_taken = on_taken
        self._on_death = on_death
        self._thread = thread
        self._running: Future[None] | None = None
        # An asynchronous device is waited for in another thread, while this one launches the next batch.
        self._room = threading.Semaphore(_IN_FLIGHT if classifier.asynchronous else 1)
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="landed") if classifier.asynchronous else None
        self._landed_at = 0.0
        self._died = False

    async def start(self) -> None:
        """Warm up, then begin."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._warm_up)
        self._running = self._thread.submit(self._run, loop)

    def join(self, seconds: float) -> None:
        """The queue must have been closed."""
        if self._running is not None:
            wait([self._running], seconds)
        self._thread.shutdown(wait=False)

    def _warm_up(self) -> None:
        self._classifier.warm_up()
        if self._generation is not None:
            self._generation.generator.warm_up()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while not self._queue.closed:
                self._classify_next(loop)
                self._generate_next(loop)
        except BaseException as error:
            self._die(error, loop)
        finally:
            if self._collector is not None:
                self._collector.shutdown(wait=True)
            if self._profiler is not None:
                self._profiler.close()

    def _turn(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._profiler is None else self._profiler.turn(name)

    def _generates(self) -> bool:
        return self._generation is not None and self._generation.generator.busy

    def _generate_next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Compute one step of the running sequences, if there are any."""
        if self._generation is not None and self._generates():
            with self._turn("step"):
                loop.call_soon_threadsafe(self._generation.advance, self._generation.generator.step())

    def _classify_next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Launch the next batch, once the device has room for it and there is something to classify or generate."""
        self._room.acquire()
        entries = self._queue.take(self._max_batch_tokens, unless=self._generates)
        if not entries:
            self._room.release()
            return
        batch = Batch(entries, time.monotonic(), loop.create_future())
        loop.call_soon_threadsafe(self._on_taken, batch)
        with self._turn("batch"):
            parts = self._launcher.launch(entries)
        host = time.monotonic() - batch.taken
        if self._collector is None:
            self._collect(batch, parts, host, loop)
        else:
            self._collector.submit(self._collect_or_die, batch, parts, host, loop)

    def _collect_or_die(self, batch: Batch, parts: list[Part], host: float, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._collect(batch, parts, host, loop)
        except BaseException as error:
            self._die(error, loop)

    def _collect(self, batch: Batch, parts: list[Part], host: float, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for a batch and pass its results to the event loop."""
        try:
            landed = land(parts)
        finally:
            self._room.release()
        now = time.monotonic()
        seconds = now - max(batch.taken, self._landed_at)
        self._landed_at = now
        self._queue.observe(sum(entry.tokens for entry in batch.entries), seconds, self._max_batch_tokens)
        self._observe(batch.entries, landed, host)
        loop.call_soon_threadsafe(_set, batch.computed, Computed(landed.outcomes, seconds, landed.stages))

    def _die(self, error: BaseException, loop: asyncio.AbstractEventLoop) -> None:
        """Report the end of the thread, once: two threads may notice it."""
        if not self._died:
            self._died = True
            logger.critical("the device thread ended", exc_info=error)
            loop.call_soon_threadsafe(self._on_death, error)

    def _observe(self, entries: list[Entry], landed: Landed, host: float) -> None:
        for seconds in landed.fills:
            self._metrics.profile_load["host"].observe(seconds)
        self._metrics.batch_size.observe(len(entries))
        self._metrics.batch_tokens.observe(sum(len(entry.text) for entry in entries))
        self._metrics.batch_profiles.observe(len({entry.ticket.profile.version for entry in entries}))
        batches, busy, before = self.times
        host = host if self._collector is not None else max(0.0, host - landed.busy - sum(landed.fills))
        self.times = DeviceTimes(batches + 1, busy + landed.busy, before + host)


def device_executor() -> ThreadPoolExecutor:
    """A thread that can load a model and then become its device thread."""
    return ThreadPoolExecutor(1, thread_name_prefix="device")


def _set(future: asyncio.Future[Computed], computed: Computed) -> None:
    if not future.done():
        future.set_result(computed)
