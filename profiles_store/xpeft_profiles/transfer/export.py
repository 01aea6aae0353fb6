"""Profiles out of a store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from ..errors import ProfileInvalid, RecordDamaged
from ..names import ProfileKey, check_keys
from ..portions import portions
from ..record.batch import write_file_batch
from ..store import ProfileStore, StoredProfile
from .entries import Refusal
from .targets import Target

PAGE: Final = 500


async def export_profiles(
    store: ProfileStore,
    target: Target,
    *,
    tenant: str | None,
    on_page: Callable[[int, list[Refusal]], None],
) -> int:
    """Write every profile, page by page; one that changes meanwhile is written as it is when its page is read.

    Args:
        tenant: whose; None for all, and each entry then names its tenant.
        on_page: after each page, how many were written so far and the page's damaged records
            and those whose tenant or name is none.
    Returns: how many were written.
    """
    written = 0
    async for owner in _owners(store, tenant):
        cursor: str | None = None
        while True:
            page = await store.list(owner, limit=PAGE, cursor=cursor)
            refusals: list[Refusal] = []
            for lines in portions(page.profiles, lambda line: line.bytes):
                keys = [ProfileKey(owner, line.name) for line in lines]
                # Without those that were deleted since the page was read.
                found = [(key, stored) for key, stored in zip(keys, await store.get_many(keys), strict=True) if stored]
                refused = _write_all(target, found, named=tenant is None)
                written += len(found) - len(refused)
                refusals += refused
            on_page(written, refusals)
            cursor = page.next_cursor
            if cursor is None:
                break
    return written


def _write_all(target: Target, found: Sequence[tuple[ProfileKey, StoredProfile]], *, named: bool) -> list[Refusal]:
    """All but those that are damaged or called by no name, which are returned."""
    refusals: list[Refusal] = []
    files = write_file_batch([stored.record for _, stored in found])
    for (key, stored), file in zip(found, files, strict=True):
        try:
            _write(target, key, stored, file, named=named)
        except (RecordDamaged, ProfileInvalid) as error:
            refusals.append(Refusal(f"{key.tenant}/{key.name}", key.name, error.message))
    return refusals


def _write(target: Target, key: ProfileKey, stored: StoredProfile, file: bytes | RecordDamaged, *, named: bool) -> None:
    """Raises: ProfileInvalid if tenant or name is none, and may lead anywhere as a path; RecordDamaged."""
    check_keys([key])
    if isinstance(file, RecordDamaged):
        raise file
    stored.check_version()
    target.add(key.tenant if named else None, key.name, file, updated=stored.updated)


async def _owners(store: ProfileStore, tenant: str | None) -> AsyncIterator[str]:
    if tenant is not None:
        yield tenant
        return
    async for each in store.tenants():
        yield each
