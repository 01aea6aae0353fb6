"""An accepted request on its way through the engine, and its texts as the queue sees them."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xpeft_server.model.tokens.tokenizing import TokenizedText

from .journey import Journey
from .profiles.cache import CachedProfile
from .requests import ClassifyAnswer, ClassifyRequest


class Entry(NamedTuple):
    """One text of a ticket. ``attempt``: entries of earlier attempts no longer count."""

    ticket: Ticket
    place: int
    attempt: int

    @property
    def text(self) -> TokenizedText:
        return self.ticket.texts[self.place]

    @property
    def tenant(self) -> str:
        return self.ticket.tenant

    @property
    def tokens(self) -> int:
        return len(self.text)

    @property
    def alive(self) -> bool:
        """Whether anybody still waits for it."""
        return not self.ticket.answer.done() and self.attempt == self.ticket.attempt


class Ticket:
    """Holds a request from its acceptance to its one answer. Written by the event loop alone.

    Args:
        profile: the version that all its texts are computed with.
        answer: where the one answer, or the one error, goes.
    """

    def __init__(
        self,
        request: ClassifyRequest,
        texts: list[TokenizedText],
        profile: CachedProfile,
        answer: asyncio.Future[ClassifyAnswer],
        *,
        accepted: float,
    ) -> None:
        self.request = request
        self.texts = texts
        self.answer = answer
        self.accepted = accepted
        self.tokens = sum(map(len, texts))
        self.attempt = 0
        self.begin(profile)

    def begin(self, profile: CachedProfile) -> None:
        """Start, or start anew with another version; entries of an earlier attempt that are in flight are void."""
        self.attempt += 1
        self.profile = profile
        self.logits: list[NDArray[np.float32] | None] = [None] * len(self.texts)
        self.missing = len(self.texts)
        self.inference_time = 0.0
        self.queued = time.monotonic()
        self.taken: float | None = None

    def take(self, at: float) -> None:
        """The device thread took texts of it at ``at`` (monotonic seconds)."""
        if self.taken is None:
            self.taken = at
            self.journey.note("queue", self.queued, at)

    def leave(self) -> None:
        """The request is over, answered or not."""
        if self.taken is None:
            self.journey.note("queue", self.queued, time.monotonic())

    def abandon(self) -> None:
        """Void what is in flight; `begin` follows once the other version is loaded."""
        self.attempt += 1

    @property
    def tenant(self) -> str:
        return self.request.profile.tenant

    @property
    def journey(self) -> Journey:
        return self.request.journey

    @property
    def fresh(self) -> bool:
        """Whether the store was asked for the profile's version after the request had come."""
        return self.profile.asked_at >= self.accepted

    @property
    def waited(self) -> float:
        """Seconds from acceptance to the first batch."""
        return (self.taken if self.taken is not None else time.monotonic()) - self.accepted

    def entries(self) -> list[Entry]:
        return [Entry(self, place, self.attempt) for place in range(len(self.texts))]
