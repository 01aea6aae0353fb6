"""Requests to classify, from the queue to their answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from xpeft_server.model.tokens.tokenizing import TokenizedText

from .answers import answer_of
from .device.batch import Batch
from .errors import EngineError, as_engine_error
from .fairness.backlog import Backlog
from .fairness.queue import FairQueue
from .metrics import Metrics
from .profiles.cache import CachedProfile
from .profiles.freshness import Freshness
from .profiles.loader import ProfileLoader
from .request_checks import check_head
from .requests import ClassifyAnswer, ClassifyRequest
from .ticket import Entry, Ticket

logger = logging.getLogger(__name__)


class Classification:
    """The event loop's side: queues texts, and answers with logits that the current version gave.

    Args:
        queue: what the device thread takes batches from.
        on_failure: called if a bug of ours kept a batch from being answered.
    """

    def __init__(
        self,
        queue: FairQueue[Entry],
        *,
        loader: ProfileLoader,
        freshness: Freshness,
        backlog: Backlog,
        metrics: Metrics,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._queue = queue
        self._loader = loader
        self._freshness = freshness
        self._backlog = backlog
        self._metrics = metrics
        self._on_failure = on_failure
        self._tickets: set[Ticket] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Requests of which the device has taken a text."""
        return sum(ticket.taken is not None for ticket in self._tickets)

    @property
    def waiting(self) -> int:
        return sum(ticket.taken is None for ticket in self._tickets)

    async def answer(
        self, request: ClassifyRequest, texts: list[TokenizedText], profile: CachedProfile, accepted: float
    ) -> ClassifyAnswer:
        """Queue the texts and wait for the answer; cancelling withdraws them.

        Args: accepted: monotonic seconds. Raises: EngineError.
        """
        answer: asyncio.Future[ClassifyAnswer] = asyncio.get_running_loop().create_future()
        ticket = Ticket(request, texts, profile, answer, accepted=accepted)
        self._tickets.add(ticket)
        try:
            self._queue.put(ticket.entries())
            return await answer
        finally:
            self._tickets.discard(ticket)
            ticket.leave()

    def batch_taken(self, batch: Batch) -> None:
        """The device has started the batch."""
        for ticket in {entry.ticket for entry in batch.entries if entry.alive}:
            ticket.take(batch.taken)
        self._spawn(self._settle(batch))

    def fail_all(self, error: EngineError) -> None:
        """Fail every request that has no answer yet."""
        for ticket in list(self._tickets):
            if not ticket.answer.done():
                ticket.answer.set_exception(error)

    async def close(self) -> None:
        """To be called once no request waits."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _settle(self, batch: Batch) -> None:
        """Ask the store for versions while the device computes, then answer requests whose texts are all done."""
        for ticket in await self._freshness.stale({entry.ticket for entry in batch.entries if entry.alive}):
            if not ticket.answer.done():
                ticket.abandon()
                self._spawn(self._begin_anew(ticket))
        computed = await batch.computed
        self._backlog.observe(sum(entry.tokens for entry in batch.entries), computed.seconds)
        for ticket in {entry.ticket for entry in batch.entries if entry.alive}:
            ticket.inference_time += computed.seconds
            ticket.journey.stages += computed.stages
        for entry, outcome in zip(batch.entries, computed.outcomes, strict=True):
            if not entry.alive:
                continue
            if isinstance(outcome, Exception):
                entry.ticket.answer.set_exception(as_engine_error(outcome))
                continue
            entry.ticket.logits[entry.place] = outcome
            entry.ticket.missing -= 1
            if not entry.ticket.missing:
                self._answer(entry.ticket)

    async def _begin_anew(self, ticket: Ticket) -> None:
        try:
            profile = await self._loader.load(ticket.request.profile, ticket.journey)
            check_head(profile)
        except EngineError as error:
            if not ticket.answer.done():
                ticket.answer.set_exception(error)
            return
        ticket.begin(profile)
        self._queue.put(ticket.entries(), front=True)

    def _answer(self, ticket: Ticket) -> None:
        ticket.journey.profile_version = ticket.profile.version
        ticket.journey.prompt_tokens += ticket.tokens
        self._metrics.prompt_tokens.inc(ticket.tokens)
        self._metrics.request_queue_time.observe(ticket.waited)
        self._metrics.request_inference_time.observe(ticket.inference_time)
        self._metrics.unverified_answers.inc(not ticket.fresh)
        ticket.answer.set_result(answer_of(ticket))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("a batch could not be answered", exc_info=error)
            self._on_failure(error)
