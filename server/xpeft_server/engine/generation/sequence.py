"""A sequence that is being generated, as the device thread sees it."""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Any

import numpy as np

from xpeft_server.model.batches.step_packing import Chunk
from xpeft_server.model.kv.arena import ArenaRow
from xpeft_server.model.kv.cache import KvRow
from xpeft_server.model.sampling.choice import Draw
from xpeft_server.model.sampling.logprobs import RowLogprobs
from xpeft_server.model.sampling.prompt_logprobs import Targets
from xpeft_server.model.sampling.rule import SamplingRule

from ..profiles.cache import CachedProfile

if TYPE_CHECKING:
    from .answer import Answer


class Sequence:
    """Written by the device thread alone, except ``withdrawn``: the event loop sets it, and the device thread obeys.

    Args:
        profile: the version that generates it from its first token to its last; None for the bare PLM.
        limit: most tokens of prompt and answer together.
        ends: ids of the tokens that end it.
        answer: receives what becomes of it; owned by the event loop.
        prompt_likeliest: how many of the likeliest tokens are told with the logprob of each prompt token; None: no
            prompt logprobs are wanted.
        request_id: the request's id in logs.

    Attributes:
        ids: tokens of the prompt, then those generated.
        row: where its keys and values are in the cache; None while it waits.
        cached: how many of ``ids``, from the first on, have keys and values in ``row``.
        admitted_length: length of ``ids`` when it was last admitted.
        taken: monotonic seconds of its first admission.
        filled: begin and end of the fill of its profile's slot, in monotonic seconds; None if no fill was needed.
        preemptions: how often it was preempted.
        digests: of its first tokens, in `PrefixCache`; None before they are needed.
        reused: tokens of its prompt whose keys and values it took from another one's, before any preemption.
        prompt_logprobs: of the prompt's tokens from the second on, as far as computed; complete at the first token.
    """

    __slots__ = (
        "_prompt_likeliest",
        "_rule",
        "_seed",
        "admitted_length",
        "answer",
        "cached",
        "digests",
        "ends",
        "filled",
        "ids",
        "limit",
        "preemptions",
        "profile",
        "prompt_length",
        "prompt_logprobs",
        "request_id",
        "reused",
        "row",
        "taken",
        "tenant",
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
        prompt_likeliest: int | None = None,
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
        self.cached = 0
        self.admitted_length = 0
        self.taken: float | None = None
        self.filled: tuple[float, float] | None = None
        self.preemptions = 0
        self.withdrawn = False
        self.digests: list[bytes] | None = None
        self.reused = 0
        self.prompt_logprobs: list[RowLogprobs] = []
        self._prompt_likeliest = prompt_likeliest
        self._rule = rule
        self._seed = seed

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self._prompt_likeliest is not None

    @property
    def tokens(self) -> int:
        """What the queue counts: tokens to prefill before the next one can be sampled."""
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
    def uncached(self) -> int:
        """Tokens to compute before the next one can be sampled: 1 while it decodes."""
        return len(self.ids) - self.cached

    def chunk(self, count: int, slot: int | None) -> Chunk[Any]:
        """Its part in a step that computes its next ``count`` tokens; it has a row, and its profile a slot."""
        assert self.row is not None and slot is not None  # noqa: S101, PT018
        ids = np.array(self.ids[self.cached : self.cached + count], np.int32)
        return Chunk(ids, self.cached, self.row, slot, count == self.uncached, self._targets(count))

    def draw(self) -> Draw:
        """How its next token is sampled."""
        penalised = self._rule.repetition_penalty != 1
        seen = np.unique(np.array(self.ids, np.int64)) if penalised else None
        return Draw(self._rule, self._seed, self.generated, seen)

    def start_anew(self) -> None:
        """It was preempted: its keys and values are gone and are computed again from ``ids``."""
        self.row = None
        self.cached = 0
        self.digests = None
        self.preemptions += 1

    def _targets(self, count: int) -> Targets | None:
        """Prompt tokens whose logprobs the next ``count`` tokens give, if they are wanted and not computed yet."""
        if self._prompt_likeliest is None:
            return None
        first = max(self.cached, len(self.prompt_logprobs))
        ids = self.ids[first + 1 : min(self.cached + count + 1, self.prompt_length)]
        return Targets(first - self.cached, np.array(ids, np.int64), self._prompt_likeliest) if ids else None
