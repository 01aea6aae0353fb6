"""Which profile each request asks for: workloads are named by how popular the profiles are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["distinct", "uniform", "zipf", "identical", "skewed"]

FORMS: Final = "distinct, uniform, zipf:A (such as zipf:1.5), identical or skewed"
_FAVOURITE_SHARE: Final = 0.5


class PopularityInvalid(ValueError):
    """A popularity cannot be read; the message names the value."""


@dataclass(frozen=True, slots=True)
class Popularity:
    """How requests are spread over P profiles.

    ``distinct``: each profile in turn, so P neighbours are P profiles. ``uniform``: every draw is independent.
    ``zipf:A``: the k-th profile with a probability in proportion to k^-A. ``identical``: always the first.
    ``skewed``: half of the requests for the first, the others spread evenly over the rest.
    """

    kind: Kind
    exponent: float | None = None

    def __str__(self) -> str:
        return self.kind if self.exponent is None else f"{self.kind}:{self.exponent:g}"

    @classmethod
    def parse(cls, text: str) -> Popularity:
        """Raises: PopularityInvalid."""
        kind, colon, exponent = text.strip().partition(":")
        if kind not in get_args(Kind) or bool(colon) != (kind == "zipf"):
            raise PopularityInvalid(f"popularity {text!r} is not {FORMS}")
        return cls(kind, _exponent(text, exponent) if colon else None)  # type: ignore[arg-type]

    def draw(self, requests: int, profiles: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """``[requests]`` indices below ``profiles``, which is 1 or more."""
        if self.kind == "distinct":
            return np.arange(requests) % profiles
        return rng.choice(profiles, size=requests, p=self._shares(profiles))

    def _shares(self, profiles: int) -> NDArray[np.float64]:
        """``[profiles]`` probabilities of one draw, none negative, sum 1."""
        match self.kind:
            case "identical":
                weights = np.zeros(profiles)
                weights[0] = 1.0
            case "skewed" if profiles > 1:
                weights = np.full(profiles, (1 - _FAVOURITE_SHARE) / (profiles - 1))
                weights[0] = _FAVOURITE_SHARE
            case "zipf":
                assert self.exponent is not None
                weights = np.arange(1, profiles + 1, dtype=np.float64) ** -self.exponent
            case _:
                weights = np.ones(profiles)
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares


def parse_popularities(text: str) -> tuple[Popularity, ...]:
    """Comma-separated, each once. Raises: PopularityInvalid."""
    found = tuple(Popularity.parse(part) for part in text.split(","))
    for position, each in enumerate(found):
        if each in found[:position]:
            raise PopularityInvalid(f"popularity {text!r} names {each} twice")
    return found


def _exponent(text: str, digits: str) -> float:
    try:
        value = float(digits)
    except ValueError:
        value = math.nan
    if not 0 < value <= 16:
        raise PopularityInvalid(f"popularity {text!r}: the exponent {digits!r} is not a number above 0, 16 at most")
    return value
