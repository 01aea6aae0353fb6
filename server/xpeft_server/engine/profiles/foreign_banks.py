"""Banks that profiles in the store were made for, and that this server does not have: each told once."""

from __future__ import annotations

import logging

from xpeft_profiles import ProfileKey

logger = logging.getLogger(__name__)

_TOLD_MAX = 1_000


class ForeignBanks:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def observe(self, key: ProfileKey, bank: str, problem: str) -> None:
        """The log gets a line for each bank, however many profiles of it are asked for."""
        if bank in self._told:
            return
        if len(self._told) >= _TOLD_MAX:
            self._told.clear()
        self._told.add(bank)
        logger.warning(
            "profile %r of tenant %r is answered with 409, as will be every other one of its bank: %s",
            key.name,
            key.tenant,
            problem,
        )
