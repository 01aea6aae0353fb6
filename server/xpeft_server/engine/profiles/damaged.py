"""Records that the store returned damaged: counted each time, told once."""

from __future__ import annotations

import logging

from prometheus_client import Counter

from xpeft_profiles import ProfileKey
from xpeft_profiles.told_once import ToldOnce

logger = logging.getLogger(__name__)


class DamagedProfiles:
    """Profiles whose record failed its checksum when somebody asked for them; may be used from any thread.

    Args:
        counter: goes up by one each time.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._told = ToldOnce[tuple[ProfileKey, str]]()

    def observe(self, key: ProfileKey, version: str, problem: str) -> None:
        """The log gets a line for each version of a profile, however often it is asked for."""
        self._counter.inc()
        if self._told.is_new((key, version)):
            logger.error("profile %r of tenant %r, version %r, is damaged: %s", key.name, key.tenant, version, problem)
