"""What `xpeft bench load` is asked to measure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from xpeft_server.client_tls import NO_FILES, ClientTls

from ..command_line import shown_word
from ..popularity import Popularity
from .slo import Slo

AUTO: Final = "auto"
_LARGEST_RATE: Final = 1e6


class Kind(StrEnum):
    CLASSIFY = "classify"
    GENERATE = "generate"


class TargetsAlike(ValueError):
    """Two targets have one name; the message names it."""


class RatesInvalid(ValueError):
    """Rates cannot be read; the message names the value."""


@dataclass(frozen=True, slots=True)
class TargetPlan:
    """``url``: a server that runs already, asked with ``key``; None: one is started. ``name``: in tables and plots."""

    name: str
    url: str | None = None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to measure.

    Args:
        targets: one, or two that are compared.
        tls: what those of them are met with that speak https.
        server: options of the server that is started, if one is, with a ``store`` (None: a temporary SQLite file) and
            so many ``tenants``.
        plm: whose tokenizer counts ``lengths``.
        rates: requests a second, rising; None: from what the targets can do.
        seconds: in which the requests of one rate are due.
        texts: different requests.
        lengths: a file of lengths; None: texts are as long as they are.
        new_tokens: what a request asks for where ``lengths`` does not tell.
    """

    targets: tuple[TargetPlan, ...]
    kind: Kind
    rates: tuple[float, ...] | None
    seconds: float
    rounds: int
    profiles: int
    popularity: Popularity
    texts: int
    slo: Slo
    server: Mapping[str, str]
    tenants: int
    plm: str
    store: str | None = None
    lengths: Path | None = None
    new_tokens: int = 32
    tls: ClientTls = NO_FILES
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises: TargetsAlike."""
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise TargetsAlike(f"both targets are called {names[0]!r}: give --name and --against-name")

    def settings(self) -> dict[str, object]:
        """Without keys and certificates."""
        started = any(target.url is None for target in self.targets)
        server = {"store": self.store, "tenants": self.tenants, **self.server} if started else {}
        return {
            "targets": {target.name: target.url and shown_word(target.url) for target in self.targets},
            "kind": str(self.kind),
            "rates": AUTO if self.rates is None else list(self.rates),
            "seconds": self.seconds,
            "rounds": self.rounds,
            "profiles": self.profiles,
            "popularity": str(self.popularity),
            "texts": self.texts,
            "slo": str(self.slo),
            "lengths": self.lengths and self.lengths.name,
            "new_tokens": self.new_tokens if self.kind is Kind.GENERATE else None,
            "seed": self.seed,
            "server": {name: value if value is None else shown_word(str(value)) for name, value in server.items()},
        }


def parse_rates(text: str) -> tuple[float, ...] | None:
    """Comma-separated numbers above 0, each once, sorted; ``auto`` is None. Raises: RatesInvalid."""
    if text.strip() == AUTO:
        return None
    rates = [_rate(text, part.strip()) for part in text.split(",")]
    if len(set(rates)) < len(rates):
        raise RatesInvalid(f"rates {text!r} names a number twice")
    return tuple(sorted(rates))


def _rate(text: str, part: str) -> float:
    try:
        rate = float(part)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= _LARGEST_RATE:
        raise RatesInvalid(f"rates {text!r}: {part!r} is neither auto nor a number of requests a second above 0")
    return rate
