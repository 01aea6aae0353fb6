"""Requests to generate: a request goes in, news of its answer comes out."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator

from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder

from ..device.slot_table import SlotTable
from ..engine_limits import EngineLimits
from ..errors import EngineError, InvalidInput
from ..fairness.permits import Permit, Permits, SharedPermit
from ..fairness.queue import FairQueue
from ..fairness.shares import Shares
from ..metrics import Metrics
from ..profiles.cache import CachedProfile
from ..profiles.loader import ProfileLoader
from ..request_checks import check_prompt
from ..requests import Echo, Finished, GenerateRequest, News, Prompt, Started
from ..tokenizer_stage import TokenizerStage
from .advance import Advance
from .answer import Answer
from .generator import Generator
from .prompt_echo import prompt_echo
from .sequence import Sequence
from .text_stream import TextStream

logger = logging.getLogger(__name__)


class Generation:
    """The event loop's side: checks, tokenises, loads the profile, queues, and delivers what the device thread did.

    Args:
        changed: notified of sequences that wait; the device thread waits for it.
        check_open: raises Unavailable if the engine takes no requests.

    Attributes:
        generator: the device thread's side.
    """

    def __init__(
        self,
        decoder: Decoder,
        classifier: Classifier,
        *,
        slots: SlotTable,
        shares: Shares,
        changed: threading.Condition,
        tokenizer: TokenizerStage,
        loader: ProfileLoader,
        permits: Permits,
        limits: EngineLimits,
        metrics: Metrics,
        check_open: Callable[[], None],
    ) -> None:
        self._limit = decoder.limit
        self._ends = decoder.plm.ends
        self._tokenizer = tokenizer
        self._loader = loader
        self._permits = permits
        self._metrics = metrics
        self._check_open = check_open
        self._sequences: set[Sequence] = set()
        self._waiting: FairQueue[Sequence] = FairQueue(shares, changed=changed)
        self.generator = Generator(
            decoder,
            classifier,
            waiting=self._waiting,
            slots=slots,
            shares=shares,
            max_tokens=limits.max_batch_tokens,
            max_sequences=limits.max_sequences,
            prefix_caching=limits.prefix_caching,
            metrics=metrics,
        )

    @property
    def running(self) -> int:
        """Answers that the device thread has begun and not finished."""
        return sum(each.taken is not None and not each.answer.done for each in self._sequences)

    @property
    def waiting(self) -> int:
        return sum(each.taken is None for each in self._sequences)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[News, None]:
        """See `EnginePort.generate`."""
        accepted = time.monotonic()
        journey = request.journey
        _check(request)
        with self._permit(request) as permit:
            with journey.stage("tokenise", texts=1):
                tokens = await self._tokenizer.encode_prompt(request.tenant, request.prompt)
            check_prompt(tokens, self._limit, least=0 if request.max_new_tokens == 0 else 1)
            prompt = tokens.ids.tolist()
            permit.admit_tokens(len(prompt))
            profile = (
                None if request.profile is None else await self._loader.current(request.profile, accepted, journey)
            )
            self._check_open()
            sequence = self._sequence(request, prompt, profile, accepted)
            try:
                self._sequences.add(sequence)
                self._waiting.put([sequence])
                while not sequence.answer.told_all:
                    news = await sequence.answer.next()
                    if isinstance(news, Started):
                        self._metrics.time_to_first_token.observe(time.monotonic() - accepted)
                        self._metrics.request_queue_time.observe(news.queue_time)
                        self._metrics.unverified_answers.inc(not news.verified)
                    elif isinstance(news, Finished):
                        self._metrics.prompt_tokens.inc(news.prompt_tokens)
                        self._metrics.request_inference_time.observe(news.inference_time)
                    yield news
                    if isinstance(news, Started) and request.echo:
                        for part in self._echo(sequence, request.prompt):
                            yield part
                            await asyncio.sleep(0)
            finally:
                sequence.answer.leave(sequence)
                sequence.withdrawn = True
                self._sequences.discard(sequence)
                permit.spend(sequence.generated)

    def _echo(self, sequence: Sequence, prompt: Prompt) -> Iterator[Echo]:
        text = prompt if isinstance(prompt, str) else None
        return prompt_echo(self._tokenizer.tokenizer, sequence, text)

    def advance(self, advances: list[Advance]) -> None:
        """Deliver the results of a step."""
        for advance in advances:
            sequence = advance.sequence
            try:
                over = sequence.answer.advance(advance)
            except Exception as error:
                logger.exception("an answer could not be told", extra=sequence.labels)
                sequence.answer.fail_unexpectedly(error)
                over = True
            sequence.withdrawn |= over

    def fail_all(self, error: EngineError) -> None:
        for sequence in list(self._sequences):
            sequence.answer.fail(error)
            sequence.withdrawn = True

    def _permit(self, request: GenerateRequest) -> Permit | SharedPermit:
        if request.group is None:
            return self._permits.admitted(request.tenant, 1)
        return self._permits.shared(request.tenant, request.group.size, request.group.id)

    def _sequence(
        self, request: GenerateRequest, prompt: list[int], profile: CachedProfile | None, accepted: float
    ) -> Sequence:
        decoding = self._tokenizer.tokenizer
        answer = Answer(
            decoding,
            TextStream(decoding, prompt, request.stop),
            profile_version=None if profile is None else profile.version,
            prompt_tokens=len(prompt),
            accepted=accepted,
            journey=request.journey,
            verified=profile is None or profile.asked_at >= accepted,
        )
        most = self._limit if request.max_new_tokens is None else len(prompt) + request.max_new_tokens
        return Sequence(
            prompt,
            tenant=request.tenant,
            profile=profile,
            limit=min(self._limit, most),
            ends=() if request.ignore_eos else self._ends,
            rule=request.sampling,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            answer=answer,
            prompt_likeliest=request.sampling.logprobs if request.echo else None,
            request_id=request.journey.id,
        )


def _check(request: GenerateRequest) -> None:
    if not request.prompt:
        raise InvalidInput("prompt is empty: there is nothing to go on with", param="prompt")
    least = 0 if request.echo else 1
    if request.max_new_tokens is not None and request.max_new_tokens < least:
        message = f"max_new_tokens is {request.max_new_tokens}, at least {least} is needed"
        raise InvalidInput(message, param="max_new_tokens")
