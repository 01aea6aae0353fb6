"""A source in portions that were checked and can be stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from ..errors import ProfileInvalid, SourceInvalid, shown
from ..file.batch import read_file_batch
from ..names import NAME_PATTERN, RESERVED, ProfileKey, check_name, check_new_name
from ..store import KeyedRecord
from .entries import Entry, Refusal, Source

ENTRIES: Final = 16384
FILE_BYTES: Final = 32 << 20
"""Of a batch: it ends with the entry that reaches either."""


class Batch(NamedTuple):
    """Records, the files that they were made of, and where those stood; ``position``: bytes read so far."""

    records: list[KeyedRecord]
    files: list[bytes]
    wheres: list[str]
    refusals: list[Refusal]
    position: int


class BatchReader:
    """Reads and checks; blocks, and is used by one thread at a time.

    Of entries of one name the first counts, those that come later are refused.

    Args:
        tenant: of the entries that name none; an entry of another is refused. None: every entry must name one.
        of_tenants: False where others know whose they are: entries must not name a tenant, their keys have none.
        max_bytes: of a profile file.
    """

    def __init__(
        self,
        source: Source,
        *,
        tenant: str | None,
        max_bytes: int,
        of_tenants: bool = True,
        entries: int = ENTRIES,
    ) -> None:
        self.source = source
        self._tenant = tenant
        self._of_tenants = of_tenants
        self._max_bytes = max_bytes
        self._most = entries
        self._fault: SourceInvalid | None = None
        self._entries = self._up_to_fault()
        self._seen: dict[str, set[str]] = {}
        self._owners: dict[str | None, tuple[str, set[str]]] = {}

    def read(self) -> Batch | None:
        """None at the end. Raises: SourceInvalid, once all that came before the fault was handed out."""
        entries: list[tuple[ProfileKey, Entry]] = []
        refusals: list[Refusal] = []
        size = 0
        for found in self._entries:
            if isinstance(found, Entry):
                try:
                    entries.append((self._key(found), found))
                    size += len(found.file)
                except ProfileInvalid as error:
                    refusals.append(Refusal(found.where, found.name, error.message))
            else:
                refusals.append(found)
            if len(entries) + len(refusals) >= self._most or size >= FILE_BYTES:
                break
        if entries or refusals:
            return self._checked(entries, refusals)
        if self._fault is not None:
            raise self._fault
        return None

    def _up_to_fault(self) -> Iterator[Entry | Refusal]:
        try:
            yield from self.source.entries()
        except SourceInvalid as error:
            self._fault = error

    def _checked(self, entries: list[tuple[ProfileKey, Entry]], refusals: list[Refusal]) -> Batch:
        batch = Batch([], [], [], refusals, self.source.bytes_read)
        answers = read_file_batch([entry.file for _, entry in entries], max_bytes=self._max_bytes)
        for (key, (where, _, name, file)), answer in zip(entries, answers, strict=True):
            if isinstance(answer, ProfileInvalid):
                refusals.append(Refusal(where, name, answer.message))
            else:
                batch.records.append(KeyedRecord(key, answer.version, answer.record))
                batch.files.append(file)
                batch.wheres.append(where)
        return batch

    def _key(self, entry: Entry) -> ProfileKey:
        """Raises: ProfileInvalid."""
        owner = self._owners.get(entry.tenant)
        if owner is None:
            owner = self._owners[entry.tenant] = self._owner(entry.tenant)
        tenant, seen = owner
        name = entry.name
        if NAME_PATTERN.fullmatch(name) is None or name == RESERVED:
            check_new_name(name)
        if name in seen:
            raise ProfileInvalid(f"{name!r} stands in the source before, only the first is taken", "name")
        seen.add(name)
        return ProfileKey(tenant, name)

    def _owner(self, named: str | None) -> tuple[str, set[str]]:
        """Whose an entry is that names this tenant, and the names of theirs that were seen. Raises: ProfileInvalid."""
        if not self._of_tenants:
            if named is not None:
                raise ProfileInvalid(
                    f"the entry names {shown(named)}, but the key says whose profiles these are:"
                    " an export with --tenant names none",
                    "tenant",
                )
            return "", self._seen.setdefault("", set())
        tenant = self._tenant if named is None else named
        if tenant is None:
            raise ProfileInvalid("the entry names none: give --tenant for those that do not", "tenant")
        if self._tenant is not None and tenant != self._tenant:
            raise ProfileInvalid(f"the entry is of {shown(tenant)}, {self._tenant!r} was asked for", "tenant")
        check_name(tenant, param="tenant")
        return tenant, self._seen.setdefault(tenant, set())
