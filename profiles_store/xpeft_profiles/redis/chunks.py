"""Splits records for Redis: each run of the script writes some records of one tenant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from ..portions import PORTION_BYTES
from ..store import KeyedRecord, PutOutcome
from .scripts import TIMES

RECORDS: Final = 500
"""Records of one run: it passes four values for each to one command, of which Lua allows 8,000, and takes some ms."""

_STATUS: Final[dict[int, Literal["created", "replaced", "identical", "kept"]]] = {
    ord("c"): "created",
    ord("r"): "replaced",
    ord("i"): "identical",
    ord("k"): "kept",
}


class Chunk:
    """Records of one tenant, of different names. ``places``: where they stand in the whole call; ``bytes``: of them."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.places: list[int] = []
        self.arguments: list[str | bytes] = []
        self.bytes = 0
        self._names: set[str] = set()

    def takes(self, keyed: KeyedRecord) -> bool:
        room = len(self.places) < RECORDS and self.bytes + len(keyed.record) <= PORTION_BYTES
        return not self.places or (room and keyed.key.name not in self._names)

    def add(self, place: int, keyed: KeyedRecord) -> None:
        (_, name), version, record = keyed
        self.places.append(place)
        self.arguments += (name, version, bytes.fromhex(version.removeprefix("sha256:")) + record)
        self._names.add(name)
        self.bytes += len(name) + len(version) + len(record)

    def outcomes(
        self, answer: tuple[bytes, bytes, list[bytes], int], records: Sequence[KeyedRecord]
    ) -> Iterator[tuple[int, PutOutcome]]:
        """Place and outcome, of what the script returned."""
        letters, times, kept, _ = answer
        versions = iter(kept)
        for place, letter, (created, updated) in zip(self.places, letters, TIMES.iter_unpack(times), strict=True):
            status = _STATUS[letter]
            version = next(versions).decode("ascii", "replace") if status == "kept" else records[place].version
            yield place, PutOutcome(version, status, created, updated)


def chunks_of(records: Sequence[KeyedRecord]) -> list[Chunk]:
    """Chunks that, run in this order, have the effect of the records one after the other."""
    chunks: list[Chunk] = []
    last: dict[str, Chunk] = {}
    for place, keyed in enumerate(records):
        tenant = keyed.key.tenant
        chunk = last.get(tenant)
        if chunk is None or not chunk.takes(keyed):
            chunk = last[tenant] = Chunk(tenant)
            chunks.append(chunk)
        chunk.add(place, keyed)
    return chunks
