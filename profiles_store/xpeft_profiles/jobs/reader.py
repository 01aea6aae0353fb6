"""Records of many tuning jobs, as a store has them: one that cannot be read stands in nobody's way."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, NamedTuple

from ..errors import RecordDamaged
from .record import JobKey, decode_job
from .store import StoredJob

logger = logging.getLogger(__name__)

_TOLD_MAX: Final = 10_000


class FoundJob(NamedTuple):
    """Not yet decoded. ``lapsed``: see `StoredJob`."""

    key: JobKey
    record: bytes
    lapsed: bool


class JobReader:
    """Remembers what it has logged. May be used from any thread."""

    def __init__(self) -> None:
        self._told: set[JobKey] = set()

    def readable(self, found: Iterable[FoundJob]) -> list[StoredJob]:
        """Without those that are damaged, or that a newer server wrote in its own way: each is logged once."""
        jobs: list[StoredJob] = []
        for key, record, lapsed in found:
            try:
                jobs.append(StoredJob(decode_job(record), lapsed))
            except RecordDamaged as error:
                self._tell(key, error)
        return jobs

    def _tell(self, key: JobKey, error: RecordDamaged) -> None:
        if key in self._told:
            return
        if len(self._told) >= _TOLD_MAX:
            self._told.clear()
        self._told.add(key)
        logger.error("tuning job %r of tenant %r is left out: %s", key.id, key.tenant, error.message)
