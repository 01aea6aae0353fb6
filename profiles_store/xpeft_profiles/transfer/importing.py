"""Profiles from a source to where they shall be."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ..portions import portions
from ..store import KeyedRecord, ProfileStore, StoredProfile
from .batches import Batch, BatchReader
from .entries import Refusal

Status = Literal["created", "replaced", "identical", "kept"]
_OBJECTS: Final = 100_000
"""Allocations between two rounds of the garbage collector while profiles are imported."""


@dataclass(slots=True)
class Totals:
    """Of a whole import, or of what would come of it; ``position``: bytes of the source that were read."""

    created: int = 0
    replaced: int = 0
    identical: int = 0
    kept: int = 0
    refused: int = 0
    position: int = 0

    @property
    def done(self) -> int:
        return self.created + self.replaced + self.identical + self.kept + self.refused

    def add(self, outcomes: Sequence[Status | Refusal]) -> None:
        counts = Counter("refused" if isinstance(outcome, Refusal) else outcome for outcome in outcomes)
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)


class ImportTarget(Protocol):
    async def put(self, batch: Batch) -> Sequence[Status | Refusal]:
        """One outcome a record, in their order; what is not refused is durable on return, if anything is written."""


class StoreTarget:
    """A store, written without a server.

    Args: replace: False leaves alone what is there; dry_run: write nothing, say what would be.
    """

    def __init__(self, store: ProfileStore, *, replace: bool = True, dry_run: bool = False) -> None:
        self._store = store
        self._replace = replace
        self._dry_run = dry_run

    async def put(self, batch: Batch) -> Sequence[Status | Refusal]:
        if self._dry_run:
            return await self._looked_up(batch)
        return [outcome.status for outcome in await self._store.put_many(batch.records, replace=self._replace)]

    async def _looked_up(self, batch: Batch) -> list[Status]:
        statuses: list[Status] = []
        for records in portions(batch.records, lambda keyed: len(keyed.record)):
            found = await self._store.get_many([keyed.key for keyed in records])
            statuses += [
                would_be(keyed.version, _version_there(keyed, stored), replace=self._replace)
                for keyed, stored in zip(records, found, strict=True)
            ]
        return statuses


def _version_there(keyed: KeyedRecord, stored: StoredProfile | None) -> str | None:
    """Of what is stored; none of a damaged record, which has the version of the one to be put and is another."""
    if stored is None:
        return None
    damaged = stored.version == keyed.version and stored.record != keyed.record
    return "" if damaged else stored.version


def would_be(version: str, there: str | None, *, replace: bool) -> Status:
    """What putting ``version`` comes to where ``there`` is: None where nothing is, "" where the record is damaged."""
    if there is None:
        return "created"
    if there == version:
        return "identical"
    return "replaced" if replace else "kept"


async def import_profiles(
    reader: BatchReader, target: ImportTarget, totals: Totals, *, on_batch: Callable[[Sequence[Refusal]], None]
) -> None:
    """Put all that the reader finds; while one batch is being put the next one is read and checked.

    What is there already is recognised by its version and not written again, so that an import that was cut off is
    gone on with by beginning it again.

    Args: totals: counted up; on_batch: after each batch, with its refusals.
    Raises: what reader and target raise; what was counted is done all the same.
    """

    async def put(batch: Batch) -> None:
        outcomes = await target.put(batch) if batch.records else []
        totals.add([*outcomes, *batch.refusals])
        totals.position = batch.position
        on_batch([*batch.refusals, *(each for each in outcomes if isinstance(each, Refusal))])

    putting: asyncio.Task[None] | None = None
    with _collected_rarely():
        try:
            while (batch := await asyncio.to_thread(reader.read)) is not None:
                if putting is not None:
                    await putting
                putting = asyncio.create_task(put(batch))
        finally:
            if putting is not None:
                await putting


@contextmanager
def _collected_rarely() -> Iterator[None]:
    """Batches are thousands of tuples and no cycle, which the collector would look through again and again."""
    thresholds = gc.get_threshold()
    gc.set_threshold(_OBJECTS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
