"""What goes into tuning: plain values, no tensors, no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from xpeft_profiles import Match, ProfileKey
from xpeft_profiles.store import NO_CONDITION


class TuningExample(NamedTuple):
    """One text, or a pair of texts, and its label or number. ``split``: train, dev, test, or None for all rows."""

    text: str
    label: str | float
    text_pair: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class TuningRequest:
    """Examples to tune a profile on.

    ``labels`` None: those of the examples, in the order of their first appearance; for numbers, the tuning's own name.
    ``settings`` holds what the tenant has set, by the names of the tuning package. ``match`` is a condition on storing
    the profile. With ``completions`` texts are prompts, and labels what a decoder learns to write after them.
    """

    profile: ProfileKey
    examples: tuple[TuningExample, ...]
    labels: tuple[str, ...] | None
    settings: Mapping[str, Any]
    match: Match = NO_CONDITION
    completions: bool = False
