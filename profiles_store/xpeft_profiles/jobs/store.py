"""What every store of tuning jobs does: the protocol and what goes in and out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .record import JobKey, JobRecord

KEPT_SECONDS = 7 * 86_400
"""How long after its end a job is remembered."""


class StoredJob(NamedTuple):
    """``lapsed``: nobody has answered for this unfinished job for as long as its lease was."""

    record: JobRecord
    lapsed: bool


class JobPage(NamedTuple):
    """``next_cursor`` is None on the last page."""

    jobs: tuple[StoredJob, ...]
    next_cursor: str | None


class JobStore(Protocol):
    """Records of jobs, beside the profiles of the same store. Every method may raise StoreUnavailable.

    The owner of an unfinished job holds a lease on it, which it renews; time is the store's own. A finished record
    never changes, and is gone `KEPT_SECONDS` after its ``finished``.
    """

    async def add(self, record: JobRecord, *, lease: float, most: int, keep: int) -> None:
        """Write an unfinished record with a lease of so many seconds.

        Of the tenant's records, newest first, the finished ones beyond ``keep`` are dropped.

        Raises: TooManyJobs if the tenant has ``most`` unfinished ones, not counting those that have lapsed;
            ProfileInvalid if the tenant or the profile is not a name.
        """

    async def get(self, key: JobKey) -> StoredJob | None:
        """Raises: RecordDamaged."""

    async def replace(self, record: JobRecord, *, lease: float) -> bool:
        """Write over an unfinished record, lapsed or not. False if it is finished or gone: nothing is written."""

    async def renew(self, keys: Sequence[JobKey], *, lease: float) -> list[bool]:
        """From now on so many seconds; one answer a key, in their order: False if it is finished or gone.

        Without keys SQLite still says whether it could be written to.
        """

    async def unfinished(self) -> list[StoredJob]:
        """Of all tenants, without those that cannot be read: a question for the start of a server."""

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None) -> JobPage:
        """A page, newest first, without those that cannot be read. Raises: CursorInvalid."""
