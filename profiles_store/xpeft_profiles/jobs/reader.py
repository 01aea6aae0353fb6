"""Decodes the records of many tuning jobs, leaving out those that cannot be read."""

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
        """The jobs without damaged ones, or those of a newer server's format: each of these is logged once."""
        jobs: list[StoredJob] = []
        for key, record, lapsed in found:
            try:
                jobs.append(StoredJob(decode_job(record), lapsed))
            except RecordDamaged as error:
                if self._told.is_new(key):
                    logger.error("tuning job %r of tenant %r is left out: %s", key.id, key.tenant, error.message)
        return jobs
