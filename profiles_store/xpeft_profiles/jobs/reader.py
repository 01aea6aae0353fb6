"""Records of many tuning jobs, as a store has them: one that cannot be read stands in nobody's way."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from ..errors import RecordDamaged
from ..told_once import ToldOnce
from .record import JobKey, decode_job
from .store import StoredJob

logger = logging.getLogger(__name__)


class FoundJob(NamedTuple):
    """Not yet decoded. ``lapsed``: see `StoredJob`."""

    key: JobKey
    record: bytes
    lapsed: bool


class JobReader:
    """Remembers what it has logged. May be used from any thread."""

    def __init__(self) -> None:
        self._told = ToldOnce[JobKey]()

    def readable(self, found: Iterable[FoundJob]) -> list[StoredJob]:
        """Without those that are damaged, or that a newer server wrote in its own way: each is logged once."""
        jobs: list[StoredJob] = []
        for key, record, lapsed in found:
            try:
                jobs.append(StoredJob(decode_job(record), lapsed))
            except RecordDamaged as error:
                if self._told.is_new(key):
                    logger.error("tuning job %r of tenant %r is left out: %s", key.id, key.tenant, error.message)
        return jobs
