"""An answer that is being generated, on the event loop's side: tokens come in, news goes out."""

from __future__ import annotations

import asyncio
import time

from xpeft_server.model.tokens.tokenizing import TextTokenizer

from ..errors import EngineError, InternalError
from ..journey import Journey
from ..requests import ChosenToken, Finished, FinishReason, News, Piece, Started
from .advance import Advance
from .sequence import Sequence
from .text_stream import TextStream
from .told_token import told_token


class Answer:
    """Delivers each piece of news once, in order; the last is `Finished`, or an error. Used from the event loop alone.

    Args:
        text: turns tokens into text.
        profile_version: None for the bare PLM.
        verified: whether the store confirmed the version after the request came.
        accepted: monotonic seconds when the request came.
        journey: where its stages are noted.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        text: TextStream,
        *,
        profile_version: str | None,
        prompt_tokens: int,
        accepted: float,
        journey: Journey,
        verified: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._profile_version = profile_version
        self._prompt_tokens = prompt_tokens
        self._accepted = accepted
        self._verified = verified
        self._journey = journey
        self._queued = time.monotonic()
        self._tokens = 0
        self._cached_tokens = 0
        self._started_at: float | None = None
        self._last_at = 0.0
        self._queue_time = 0.0
        self._news: asyncio.Queue[News | EngineError] = asyncio.Queue()
        self.done = False

    @property
    def told_all(self) -> bool:
        """Whether it is over and all its news has been delivered."""
        return self.done and self._news.empty()

    async def next(self) -> News:
        """Wait for the next news. Raises: EngineError if the answer ended with one."""
        news = await self._news.get()
        if isinstance(news, EngineError):
            raise news
        return news

    def advance(self, advance: Advance) -> bool:
        """Process the result of a step; ignored after the end. Returns: whether the answer is over."""
        if self.done:
            return True
        if advance.error is not None:
            self.fail(advance.error)
            return True
        if self._started_at is None:
            self._start(advance)
        self._tokens += advance.counted
        self._last_at = advance.at
        text = "" if advance.token is None else self._text.push(advance.token)
        reason: FinishReason | None = "stop" if self._text.stopped else advance.finish_reason
        if reason is not None:
            text += self._text.end()
        tokens: tuple[ChosenToken, ...] = ()
        if advance.token is not None and advance.logprobs is not None:
            tokens = (told_token(self._tokenizer, advance.token, advance.logprobs),)
        if text or tokens:
            self._news.put_nowait(Piece(text, tokens, self._tokens))
        if reason is not None:
            self._finish(reason)
        return self.done

    def fail(self, error: EngineError) -> None:
        """End the answer with an error, unless it is over."""
        if not self.done:
            self.done = True
            self._news.put_nowait(error)

    def fail_unexpectedly(self, error: Exception) -> None:
        """End the answer because of a bug of ours."""
        self.fail(InternalError(f"the answer could not be told: {error!r}"))

    def leave(self, sequence: Sequence) -> None:
        """Note its last stage: it is over, or was withdrawn."""
        now = time.monotonic()
        if self._started_at is not None:
            facts = {"tokens": self._tokens, "preemptions": sequence.preemptions}
            self._journey.note("decode", self._started_at, self._last_at if self.done else now, **facts)
            self._journey.completion_tokens += self._tokens
        elif sequence.taken is not None:
            self._note_beginning(sequence, sequence.taken, now)
        else:
            self._journey.note("queue", self._queued, now)

    def _start(self, advance: Advance) -> None:
        self._started_at = advance.at
        self._cached_tokens = advance.sequence.reused
        taken = advance.sequence.taken or advance.at
        self._queue_time = taken - self._accepted
        self._note_beginning(advance.sequence, taken, advance.at)
        self._journey.profile_version = self._profile_version
        self._journey.prompt_tokens += self._prompt_tokens
        told = self._queue_time, self._verified, self._prompt_tokens, self._cached_tokens
        self._news.put_nowait(Started(self._profile_version, *told))

    def _note_beginning(self, sequence: Sequence, taken: float, ended: float) -> None:
        self._journey.note("queue", self._queued, taken)
        if sequence.filled is not None:
            self._journey.note("fill", *sequence.filled, profiles=1)
        computed = self._prompt_tokens - sequence.reused
        self._journey.note("prefill", taken, ended, tokens=computed, cached_tokens=sequence.reused)

    def _finish(self, reason: FinishReason) -> None:
        self.done = True
        inference_time = time.monotonic() - self._accepted - self._queue_time
        self._news.put_nowait(Finished(reason, self._prompt_tokens, self._tokens, inference_time, self._cached_tokens))
