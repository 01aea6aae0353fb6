"""What `xpeft bench load` sends: the texts, whose profile each is for, and how much is to be written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..processes.xpeft_target import XpeftTarget, profile_name
from ..texts import sample_texts
from .lengths import cut_texts, open_tokenizer, read_lengths
from .plan import Kind, LoadPlan

Request = tuple[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class LoadWork:
    """``[texts]`` each; ``new_tokens`` is empty where nothing is written."""

    texts: list[str]
    owners: list[int]
    new_tokens: list[int]

    def requests(self, target: XpeftTarget) -> list[Request]:
        """Body and headers of each request to one target."""
        return [
            (json.dumps(self._body(index)), _headers(target.key_of(owner))) for index, owner in enumerate(self.owners)
        ]

    def _body(self, index: int) -> dict[str, object]:
        profile, text = profile_name(self.owners[index]), self.texts[index]
        if not self.new_tokens:
            return {"profile": profile, "input": text, "truncate": True}
        return {"profile": profile, "prompt": text, "max_new_tokens": self.new_tokens[index], "stream": True}


def draw_load(plan: LoadPlan, pool: Sequence[str]) -> LoadWork:
    """Raises: LengthsInvalid; ModelError where lengths need a tokenizer that cannot be had."""
    rng = np.random.default_rng(plan.seed)
    owners = plan.popularity.draw(plan.texts, plan.profiles, rng).tolist()
    texts = sample_texts(pool, plan.texts, rng)
    new = [plan.new_tokens] * plan.texts
    if plan.lengths is not None:
        every = read_lengths(plan.lengths)
        drawn = [every[index] for index in rng.integers(0, len(every), plan.texts)]
        texts = cut_texts(texts, [length.tokens for length in drawn], open_tokenizer(plan.plm))
        new = [length.new or plan.new_tokens for length in drawn]
    return LoadWork(texts, owners, new if plan.kind is Kind.GENERATE else [])


def _headers(key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    return headers if key is None else {**headers, "Authorization": f"Bearer {key}"}
