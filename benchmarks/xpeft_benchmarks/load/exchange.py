"""One request and what became of it, as a client of a server sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

OK: Final = 200
TOTAL: Final = "total"
FIRST_TOKEN: Final = "first_token"  # noqa: S105
PER_TOKEN: Final = "per_token"  # noqa: S105
PAUSE: Final = "longest_pause"
REST: Final = "rest"


class Exchange(NamedTuple):
    """All times are in seconds.

    Args:
        late: how long after it was due it was sent; 0 if it was not later.
        status: of HTTP; 0 where no answer came, or one that broke off.
        tokens: of the text, as the server counts them; 0 where it does not tell.
        stages: where the time of an answer with 200 went, by name, empty for others. ``total``: from when it was due to
            the last byte. ``rest``: the part of that outside the server. Of streams: ``first_token``, from when it was
            due; ``per_token``, from the first to the last, by those after the first; ``longest_pause`` between two.
    """

    late: float
    status: int
    tokens: int
    stages: Mapping[str, float]
