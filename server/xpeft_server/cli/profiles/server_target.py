"""A running server as the target of an import."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from xpeft_profiles import RecordDamaged, TooManyProfiles, decode_record
from xpeft_profiles.errors import shown
from xpeft_profiles.transfer import Batch, Refusal, Status, would_be

from .client import ServerRefused
from .kept_client import KeptProfilesClient
from .pool import ProfilesPool

_NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 412
# Refusals of one profile, not of the client.
_OF_THE_PROFILE: Final = (400, 409, 413, 422)


class _Item(NamedTuple):
    where: str
    name: str
    version: str
    record: bytes
    file: bytes


class ServerTarget:
    """Args: replace: False leaves alone what is there; dry_run: write nothing, say what would be.

    Raises: ClientError, of a dry run, which asks at once what bank the server has.
    """

    def __init__(self, pool: ProfilesPool, *, replace: bool, dry_run: bool) -> None:
        self._pool = pool
        self._replace = replace
        self._bank = pool.client.bank() if dry_run else None

    async def put(self, batch: Batch) -> Sequence[Status | Refusal]:
        """Raises: ClientError."""
        items = [
            _Item(where, keyed.key.name, keyed.version, keyed.record, file)
            for where, keyed, file in zip(batch.wheres, batch.records, batch.files, strict=True)
        ]
        return await asyncio.to_thread(self._pool.map, self._outcome, items)

    def _outcome(self, client: KeptProfilesClient, item: _Item) -> Status | Refusal:
        try:
            return self._put(client, item) if self._bank is None else self._would_be(client, item, self._bank)
        except ServerRefused as refusal:
            if refusal.status in _OF_THE_PROFILE or refusal.code == TooManyProfiles.code:
                return Refusal(item.where, item.name, refusal.reason)
            raise

    def _would_be(self, client: KeptProfilesClient, item: _Item, bank: str) -> Status | Refusal:
        if (of := decode_record(item.record).bank) != bank:
            error = f"the profile was made for bank {shown(of)}, this server has {bank}"
            return Refusal(item.where, item.name, error)
        return would_be(item.version, _version(client, item.name), replace=self._replace)

    def _put(self, client: KeptProfilesClient, item: _Item) -> Status:
        """The condition tells an upload that would change nothing from one that takes the place of another."""
        condition = item.version if self._replace else "*"
        try:
            answer = client.put(item.name, item.file, if_match=None, if_none_match=condition)
        except ServerRefused as refusal:
            if refusal.status != _PRECONDITION_FAILED:
                raise
            if self._replace:
                return "identical"
            return would_be(item.version, _version(client, item.name), replace=False)
        return "created" if answer.status == 201 else "replaced"


def _version(client: KeptProfilesClient, name: str) -> str | None:
    """None where there is no such profile; of a damaged one, no version."""
    try:
        return str(client.metadata(name).get("version"))
    except ServerRefused as refusal:
        if refusal.status == _NOT_FOUND:
            return None
        if refusal.code == RecordDamaged.code:
            return ""
        raise
