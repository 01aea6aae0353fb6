"""``xpeft profiles import``: many profile files at once, into a store or through a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from xpeft_server.client_tls import ClientTls

from ..https_options import with_https_options
from ..screen import fail, say, stop
from .client import ClientError
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
)
from .refusals import Refusals, RefusalsFailed, open_refusals
from .transfer_progress import TransferProgress

if TYPE_CHECKING:
    from xpeft_profiles.transfer import BatchReader, ImportTarget, Refusal, Source, Totals

_ENTRIES_OVER_HTTP: Final = 256  # in a batch
_MIB: Final = 1 << 20


@with_https_options
def import_command(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of NAME.safetensors or TENANT/NAME.safetensors, a .tar or .tar.gz of such files, or a"
            ' .jsonl or .jsonl.gz of {"tenant"?, "name", "file": the profile file in base64}. Hidden files'
            " are skipped."
        ),
    ],
    store: StoreUrl = None,
    tenant: Tenant = None,
    url: ServerUrl = None,
    api_key: ApiKey = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the entries and show what would be done, but write nothing. Limits of the server and"
            " rights of the key are not checked.",
        ),
    ] = False,
    keep_existing: Annotated[
        bool,
        typer.Option(
            "--keep-existing", help="Keep existing profiles whose version differs, instead of replacing them."
        ),
    ] = False,
    errors: Annotated[
        Path | None,
        typer.Option(
            help="Write refused entries to this file, one line each with where, name and error.", show_default=False
        ),
    ] = None,
    max_profile_bytes: Annotated[int, typer.Option(min=1, help="Maximum size of a profile file, in bytes.")] = _MIB,
    **https: Any,
) -> None:
    """Import many profile files; one that is refused does not stop the others.

    Profiles that exist with the same version are skipped, so an interrupted import can simply be repeated.

    Example: xpeft profiles import profiles.jsonl.gz --store sqlite:///profiles.db --tenant default
    """
    from xpeft_profiles import ProfileStoreError
    from xpeft_profiles.transfer import Totals, open_source

    place = chosen_place(context, store=store, tenant=tenant, url=url, api_key=api_key, tls=ClientTls(**https))
    totals = Totals()
    try:
        with (
            closing(open_source(source, max_bytes=max_profile_bytes)) as opened,
            open_refusals(errors, source=source) as refusals,
        ):
            progress = TransferProgress("checked" if dry_run else "imported", total=opened.bytes_total)
            run = _Import(opened, progress, refusals, totals, max_bytes=max_profile_bytes)
            with progress.shown():
                if isinstance(place, ServerPlace):
                    asyncio.run(run.into_server(place, replace=not keep_existing, dry_run=dry_run))
                else:
                    asyncio.run(run.into_store(place, replace=not keep_existing, dry_run=dry_run))
    except (ProfileStoreError, ClientError, RefusalsFailed) as error:
        fail(_stopped(error, totals))
    except KeyboardInterrupt:
        stop(_interrupted(totals, dry_run=dry_run))
    say(_summary(totals, progress.seconds, dry_run=dry_run))
    if dry_run and isinstance(place, StorePlace) and (path := missing_store(place)) is not None:
        say(f"there is no store in {path} yet; the import would make it")
    if totals.refused:
        fail(f"{totals.refused} of {totals.done} entries were refused")


class _Import:
    def __init__(
        self,
        source: Source,
        progress: TransferProgress,
        refusals: Refusals,
        totals: Totals,
        *,
        max_bytes: int,
    ) -> None:
        self._source = source
        self._progress = progress
        self._refusals = refusals
        self._totals = totals
        self._max_bytes = max_bytes

    async def into_store(self, place: StorePlace, *, replace: bool, dry_run: bool) -> None:
        """Raises: ProfileStoreError."""
        from xpeft_profiles import MemoryStore
        from xpeft_profiles.transfer import BatchReader, StoreTarget

        store = open_store_at(place, read_only=dry_run)
        if dry_run and missing_store(place) is not None:
            store = MemoryStore()
        await store.open()
        try:
            reader = BatchReader(self._source, tenant=place.tenant, max_bytes=self._max_bytes)
            await self._put_all(reader, StoreTarget(store, replace=replace, dry_run=dry_run))
        finally:
            await store.close()

    async def into_server(self, place: ServerPlace, *, replace: bool, dry_run: bool) -> None:
        """Raises: ProfileStoreError, ClientError."""
        from xpeft_profiles.transfer import BatchReader

        from .pool import ProfilesPool
        from .server_target import ServerTarget

        with closing(ProfilesPool(place.url, place.api_key, place.tls)) as pool:
            reader = BatchReader(
                self._source, tenant=None, of_tenants=False, max_bytes=self._max_bytes, entries=_ENTRIES_OVER_HTTP
            )
            await self._put_all(reader, ServerTarget(pool, replace=replace, dry_run=dry_run))

    async def _put_all(self, reader: BatchReader, target: ImportTarget) -> None:
        from xpeft_profiles.transfer import import_profiles

        await import_profiles(reader, target, self._totals, on_batch=self._show)

    def _show(self, refusals: Sequence[Refusal]) -> None:
        self._refusals.add(refusals)
        self._progress.step(self._totals.done, self._totals.position)


def _stopped(error: Exception, totals: Totals) -> str:
    from xpeft_profiles import SourceInvalid

    if not totals.done:
        return str(error)
    # A source that is broken ends at the same place again.
    advice = "" if isinstance(error, SourceInvalid) else ": begin again to go on"
    return f"{error}; {totals.done} entries were done before{advice}"


def _interrupted(totals: Totals, *, dry_run: bool) -> str:
    if dry_run:
        return f"{totals.done} entries were checked, and nothing was written"
    # A batch whose write had begun may be there, too.
    return f"{totals.done} entries are done, and maybe some after them: begin again to go on"


def _summary(totals: Totals, seconds: float, *, dry_run: bool) -> str:
    counts = f"{totals.created} created, {totals.replaced} replaced, {totals.identical} identical"
    if totals.kept:
        counts += f", {totals.kept} kept"
    rate = f"{totals.done / max(seconds, 1e-9):,.0f} a second"
    return f"{'would be: ' if dry_run else ''}{counts}, {totals.refused} refused ({seconds:.1f} s, {rate})"
