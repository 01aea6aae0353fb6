"""The protocol of stores, and its values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from .errors import PreconditionFailed, RecordDamaged
from .jobs.store import JobStore
from .names import ProfileKey
from .profile import Profile, record_version
from .record.reader import decode_record


class StoredProfile(NamedTuple):
    """A record as the store holds it, not yet checked. ``created``, ``updated``: seconds since 1970."""

    version: str
    record: bytes
    created: float
    updated: float

    def decode(self) -> Profile:
        """Raises: RecordDamaged if the record is damaged or is not the one that the version stands for."""
        profile = decode_record(self.record)
        self.check_version()
        return profile

    def check_version(self) -> None:
        """Raises: RecordDamaged if the record, be it in order or not, is not the one that the version stands for."""
        version = record_version(self.record)
        if self.version != version:
            raise RecordDamaged(f"the record has version {version}, it is kept as {self.version}")


class ProfileListing(NamedTuple):
    """One line of a list; ``bytes`` is the record's size.

    ``labels`` is None without a head of its own. Of a damaged record labels and shared head are both None.
    """

    name: str
    version: str
    labels: tuple[str, ...] | None
    shared_head: str | None
    bytes: int
    created: float
    updated: float


class ListPage(NamedTuple):
    """``next_cursor`` is None on the last page; another may have fewer lines than were asked for, if they are large."""

    profiles: tuple[ProfileListing, ...]
    next_cursor: str | None


class PutOutcome(NamedTuple):
    """What is there now.

    ``identical``: that version was there already, nothing was written and ``updated`` is what it was. ``kept``: another
    version was there and was to be left alone; it is the one named here.
    """

    version: str
    status: Literal["created", "replaced", "identical", "kept"]
    created: float
    updated: float


class KeyedRecord(NamedTuple):
    """A canonical record, checked already, and where it belongs; ``version`` is the record's."""

    key: ProfileKey
    version: str
    record: bytes


@dataclass(frozen=True, slots=True)
class Match:
    """A precondition on the version that is there: If-Match and If-None-Match, unquoted; ``("*",)`` is any version.

    To a put whose If-None-Match names the put's own version, a record that is kept under it and is another is a
    damaged one and not there: it is written again.
    """

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None

    def check(self, current_version: str | None, *, damaged: bool = False) -> None:
        """Raises: PreconditionFailed unless it holds.

        Args:
            current_version: None if the profile is absent.
            damaged: the record that is there is not that version's.
        """
        if self.if_match is not None and not _names(self.if_match, current_version):
            raise PreconditionFailed(current_version)
        if self.if_none_match is not None and _names(self.if_none_match, current_version, damaged=damaged):
            raise PreconditionFailed(current_version)


def _names(versions: tuple[str, ...], current_version: str | None, *, damaged: bool = False) -> bool:
    return current_version is not None and ("*" in versions or (current_version in versions and not damaged))


NO_CONDITION = Match()


class ProfileStore(Protocol):
    """Profiles by key. Used from one event loop; every method may raise StoreUnavailable.

    A write that was acknowledged is what every later read sees, in this process and in others.
    """

    @property
    def scheme(self) -> str:
        """``memory``, ``sqlite`` or ``redis``."""

    @property
    def jobs(self) -> JobStore:
        """The tuning jobs in the same database, open and closed with it."""

    async def open(self) -> None:
        """Connect; may be called again until it works."""

    async def get(self, key: ProfileKey) -> StoredProfile | None: ...

    async def get_many(self, keys: Sequence[ProfileKey]) -> list[StoredProfile | None]:
        """One answer a key, in the keys' order."""

    async def versions(self, keys: Sequence[ProfileKey]) -> list[str | None]:
        """Which version is there now: the question of every batch, so it is cheap."""

    async def put(
        self, key: ProfileKey, profile: Profile, *, match: Match = NO_CONDITION, most: int | None = None
    ) -> PutOutcome:
        """Raises: PreconditionFailed; ProfileInvalid if the key's tenant or name is not a name;
        TooManyProfiles if the profile would be new and its tenant has ``most`` already.
        """

    async def put_many(self, records: Sequence[KeyedRecord], *, replace: bool = True) -> list[PutOutcome]:
        """Write without conditions; one outcome a record, as if they had come one after the other.

        Args: replace: False leaves alone what is there.
        Raises: ProfileInvalid, with nothing written, if a key is none. StoreUnavailable: SQLite has written nothing;
            Redis wrote each tenant's records in chunks, each of them whole or not at all.
        """

    async def delete(self, key: ProfileKey, *, match: Match = NO_CONDITION) -> bool:
        """False if it was not there. Raises: PreconditionFailed, with ``if_match`` on an absent profile too."""

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None, prefix: str = "") -> ListPage:
        """A page by name; names that stay are seen once, whatever comes and goes. Raises: CursorInvalid."""

    def tenants(self) -> AsyncIterator[str]:
        """All that have profiles, each once, in no promised order; asks as it goes."""

    async def ping(self) -> None:
        """Raises: StoreUnavailable."""

    async def close(self) -> None: ...
