"""How many profiles are read from the store at once."""

from __future__ import annotations

from typing import Final

_BEGIN: Final = 32  # first round, of unknown sizes: the store must be able to send so many of the largest profiles
_MOST: Final = 128
_BYTES: Final = 8 << 20
"""About the size of a round's records: requests for other profiles wait while they are read and decoded."""


class RoundSize:
    """Small records are read many at a time, large ones a few, by the sizes in the last round.

    Attributes:
        keys: how many the next round takes at most.
    """

    def __init__(self) -> None:
        self.keys = _BEGIN

    def observe(self, keys: int, size: int) -> None:
        """A round of so many keys had records of so many bytes together."""
        fitting = _BYTES * keys // max(size, 1)
        self.keys = max(1, min(fitting, _MOST, max(_BEGIN, 2 * keys)))
