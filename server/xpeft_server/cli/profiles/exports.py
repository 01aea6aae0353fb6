"""``xpeft profiles export``: all profiles of a tenant, or of a whole store, as profile files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from xpeft_server.client_tls import ClientTls

from ..https_options import with_https_options
from ..screen import fail, say
from .client import ClientError, ServerRefused
from .place import (
    ApiKey,
    ServerPlace,
    ServerUrl,
    StorePlace,
    StoreUrl,
    Tenant,
    chosen_place,
    missing_store,
    open_store_at,
    shown_place,
)
from .refusals import Refusals
from .target import opened_target
from .termination import termination_as_exit
from .transfer_progress import TransferProgress

if TYPE_CHECKING:
    from xpeft_profiles.transfer import Refusal, Target

    from .kept_client import KeptProfilesClient

_AT_ONCE: Final = 256  # files that are asked for before the next ones


@with_https_options
def export_command(
    context: typer.Context,
    target: Annotated[
        Path,
        typer.Argument(help="A new folder, or a file that ends in .tar, .tar.gz, .jsonl or .jsonl.gz."),
    ],
    store: StoreUrl = None,
    tenant: Tenant = None,
    url: ServerUrl = None,
    api_key: ApiKey = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    **https: Any,
) -> None:
    """Export profiles as files that can be imported again, as the same versions.

    Exports all tenants of a store, unless --tenant names one. The target is written whole or not at all; without
    profiles it is not written.

    Example: xpeft profiles export profiles.jsonl.gz --store sqlite:///profiles.db
    """
    from xpeft_profiles import ProfileStoreError

    place = chosen_place(context, store=store, tenant=tenant, url=url, api_key=api_key, tls=ClientTls(**https))
    if isinstance(place, StorePlace) and (path := missing_store(place)) is not None:
        fail(f"there is no store in {path}, which {place.url!r} names; nothing was written")
    refusals = Refusals(None)
    progress = TransferProgress("exported", total=None)
    try:
        with termination_as_exit(), opened_target(target, force=force) as opened, progress.shown():
            run = _Export(opened, progress, refusals)
            written = run.from_server(place) if isinstance(place, ServerPlace) else asyncio.run(run.from_store(place))
            if not written:
                fail(_nothing(place, refusals.count))
    except (ProfileStoreError, ClientError) as error:
        fail(f"{error}; nothing was written")
    except OSError as error:
        fail(f"{target} cannot be written: {error.strerror or error}")
    say(f"wrote {target}: {written} profiles ({progress.seconds:.1f} s)")
    if refusals.count:
        fail(f"{refusals.count} profiles were left out")


def _nothing(place: StorePlace | ServerPlace, refused: int) -> str:
    why = f"{refused} profiles were left out, and there are no others" if refused else "there are no profiles"
    return f"{why} in {shown_place(place)}; nothing was written"


class _Export:
    def __init__(self, target: Target, progress: TransferProgress, refusals: Refusals) -> None:
        self._target = target
        self._progress = progress
        self._refusals = refusals

    async def from_store(self, place: StorePlace) -> int:
        """Raises: ProfileStoreError, OSError."""
        from xpeft_profiles.transfer import export_profiles

        store = open_store_at(place, read_only=True)
        await store.open()
        try:
            return await export_profiles(store, self._target, tenant=place.tenant, on_page=self._show)
        finally:
            await store.close()

    def from_server(self, place: ServerPlace) -> int:
        """Raises: ClientError, OSError."""
        from .pool import ProfilesPool

        written = 0
        with closing(ProfilesPool(place.url, place.api_key, place.tls)) as pool:
            for some in _portions(pool.client.list(prefix="", limit=None)):
                refused: list[Refusal] = []
                for profile, file in zip(some, pool.map(_file, [each["name"] for each in some]), strict=True):
                    if isinstance(file, bytes):
                        self._target.add(None, profile["name"], file, updated=float(profile["updated"]))
                        written += 1
                    elif file is not None:
                        refused.append(file)
                self._show(written, refused)
        return written

    def _show(self, written: int, refusals: Sequence[Refusal]) -> None:
        self._refusals.add(refusals)
        self._progress.step(written, 0)


def _file(client: KeptProfilesClient, name: str) -> bytes | Refusal | None:
    """None if it is not there any more."""
    from xpeft_profiles import ProfileInvalid, RecordDamaged, check_name
    from xpeft_profiles.transfer import Refusal
    from xpeft_server.engine.errors import ProfileNotFound

    try:
        check_name(name)
        return client.file(name)
    except ProfileInvalid as error:
        return Refusal(name, name, error.message)
    except ServerRefused as refusal:
        if refusal.code == ProfileNotFound.code:
            return None
        if refusal.code == RecordDamaged.code:
            return Refusal(name, name, refusal.reason)
        raise


def _portions(profiles: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(profiles, _AT_ONCE)):
        yield some
