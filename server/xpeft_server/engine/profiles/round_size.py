"""How many profiles are read from the store at once."""

from __future__ import annotations

from typing import Final

_BEGIN: Final = 32  # profiles of which nothing is known yet: the store must be able to send so many of the largest
_MOST: Final = 128
_BYTES: Final = 8 << 20
"""Of a round's records, about: whoever wants another profile waits while they are read and decoded."""


class RoundSize:
    """Many small records cost few questions, large ones hold nobody up for long; the last round tells which they are.

    Attributes:
        keys: how many the next round takes at most.
    """

    def __init__(self) -> None:
        self.keys = _BEGIN

    def observe(self, keys: int, size: int) -> None:
        """A round of so many keys had records of so many bytes together."""
        fitting = _BYTES * keys // max(size, 1)
        self.keys = max(1, min(fitting, _MOST, max(_BEGIN, 2 * keys)))
