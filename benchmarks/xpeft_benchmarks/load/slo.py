"""What an answer must keep to count: a service level objective."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from .exchange import FIRST_TOKEN, OK, PER_TOKEN, TOTAL, Exchange

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(us|ms|s)")


class SloInvalid(ValueError):
    """A limit cannot be read; the message names option and value."""


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in seconds, from when a request was due.

    Args:
        seconds: to the end of an answer, of a stream to its first token.
        per_token: of a stream, mean time of a token after the first.
    """

    seconds: float
    per_token: float = math.inf

    def __str__(self) -> str:
        rest = "" if math.isinf(self.per_token) else f", {1000 * self.per_token:g} ms a token"
        return f"{1000 * self.seconds:g} ms{rest}"

    def is_kept(self, exchange: Exchange) -> bool:
        """By an answer with 200 only."""
        if exchange.status != OK:
            return False
        stages = exchange.stages
        first = stages.get(FIRST_TOKEN, stages[TOTAL])
        return first <= self.seconds and stages.get(PER_TOKEN, 0.0) <= self.per_token


def parse_duration(option: str, text: str) -> float:
    """Seconds of ``100ms``, ``0.5s`` and the like. Raises: SloInvalid."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        raise SloInvalid(f"{option} {text!r} is not a time such as 100ms or 0.5s")
    return seconds
