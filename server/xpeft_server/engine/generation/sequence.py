"""A sequence that is being generated, as the device thread sees it."""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpeft_server.model.kv.arena import ArenaRow
from xpeft_server.model.kv.cache import KvRow
from xpeft_server.model.sampling.choice import Draw
from xpeft_server.model.sampling.rule import SamplingRule

from ..profiles.cache import CachedProfile

if TYPE_CHECKING:
    from .answer import Answer


class Sequence:
    """Written by the device thread alone, but for ``withdrawn``, which the event loop sets and the thread obeys.

    Args:
        profile: the version that it is generated with from its first token to its last; None for the bare PLM.
        limit: most tokens that it may have, prompt and answer together.
        ends: ids of the tokens that end it.
        answer: where what becomes of it is told; the event loop's.
        request_id: what logs call its request.

    Attributes:
        ids: tokens of the prompt, and behind them those generated.
        known: how many of ``ids``, from the first on, have keys and values in ``row``.
        to_read: how many of ``ids`` there were when it was last taken in.
        taken: monotonic seconds when the device thread first took it.
        filled: when its profile's slot was filled for it, from and to, in monotonic seconds; None if it was ready.
        preemptions: how often it gave its keys and values away.
    """

    __slots__ = (
        "_rule",
        "_seed",
        "answer",
        "ends",
        "filled",
        "ids",
        "known",
        "limit",
        "preemptions",
        "profile",
        "prompt_length",
        "request_id",
        "row",
        "taken",
        "tenant",
        "to_read",
        "withdrawn",
    )

    def __init__(
        self,
        prompt: Items[int],
        *,
        tenant: str,
        profile: CachedProfile | None,
        limit: int,
        ends: Container[int],
        rule: SamplingRule,
        seed: int,
        answer: Answer,
        request_id: str = "",
    ) -> None:
        self.ids = list(prompt)
        self.prompt_length = len(self.ids)
        self.tenant = tenant
        self.profile = profile
        self.limit = limit
        self.ends = ends
        self.answer = answer
        self.request_id = request_id
        self.row: KvRow | ArenaRow | None = None
        self.known = 0
        self.to_read = 0
        self.taken: float | None = None
        self.filled: tuple[float, float] | None = None
        self.preemptions = 0
        self.withdrawn = False
        self._rule = rule
        self._seed = seed

    @property
    def tokens(self) -> int:
        """What the queue counts: tokens to read before the next one can be chosen."""
        return len(self.ids)

    @property
    def alive(self) -> bool:
        return not self.withdrawn

    @property
    def labels(self) -> dict[str, str]:
        """For logs."""
        return {"request_id": self.request_id, "tenant": self.tenant}

    @property
    def version(self) -> str | None:
        """Of its profile."""
        return None if self.profile is None else self.profile.version

    @property
    def generated(self) -> int:
        return len(self.ids) - self.prompt_length

    @property
    def unread(self) -> int:
        return len(self.ids) - self.known

    def next_ids(self, count: int) -> NDArray[np.int32]:
        return np.array(self.ids[self.known : self.known + count], np.int32)

    def draw(self) -> Draw:
        """How its next token is chosen."""
        penalised = self._rule.repetition_penalty != 1
        seen = np.unique(np.array(self.ids, np.int64)) if penalised else None
        return Draw(self._rule, self._seed, self.generated, seen)

    def start_anew(self) -> None:
        """Its keys and values are gone; they are computed again from ``ids``."""
        self.row = None
        self.known = 0
        self.preemptions += 1
