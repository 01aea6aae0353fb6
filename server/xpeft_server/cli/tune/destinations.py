"""Where tuned profiles are to go, as the command line says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from xpeft_server.client_tls import ClientTls

from ..https_options import refuse_https_options
from ..out_option import check_out_file
from ..screen import fail
from ..setting_options import is_typed

if TYPE_CHECKING:
    from .sinks import Sink

_TENANT: Final = "default"  # of a server without keys


@dataclass(frozen=True, kw_only=True)
class Destinations:
    """What is None is no destination.

    Args:
        out: file of one profile, folder of many.
        force: whether what is in the way may be replaced.
        url, api_key, tls: of a server.
        store, tenant: a store's URL, and whose profiles they are in it.
        profile: name, or template of names, see `tune_names.profile_names`.
        unasked: variables that name a server or a store, and do not count.
    """

    out: Path | None
    force: bool
    url: str | None
    api_key: str | None
    tls: ClientTls
    store: str | None
    tenant: str | None
    profile: str | None
    unasked: tuple[str, ...] = ()

    def meant(self, context: typer.Context) -> Destinations:
        """A server or a store in the environment counts only beside a name: nothing goes there unasked.

        Ends the command if an option of a server was typed, and there is none.
        """
        meant = self
        if self.profile is None:
            url = self.url if is_typed(context, "url") else None
            store = self.store if is_typed(context, "store") else None
            dropped = {"XPEFT_URL": url != self.url, "XPEFT_TUNE_STORE": store != self.store}
            unasked = tuple(variable for variable, is_so in dropped.items() if is_so)
            meant = replace(self, url=url, store=store, unasked=unasked)
        if meant.url is None:
            refuse_https_options(context, "is of a server: give --url")
        return meant

    def check_for_one(self) -> None:
        """End the command if this is no place for a profile."""
        self._check_tenant()
        if self.profile is None and (self.url or self.store):
            fail(f"--{'url' if self.url else 'store'} needs a name to upload to: give --profile")
        if self.profile is not None and not (self.url or self.store):
            fail(f"--profile {self.profile} needs a server or a store: give --url, or XPEFT_URL, or --store")
        if self.out is None and self.profile is None:
            nowhere = "there is nowhere to put the profile: give --out FILE, or --profile NAME with --url or --store"
            fail(nowhere + self._reason())
        if self.out is not None:
            check_out_file(self.out, force=self.force)

    def check_for_many(self) -> None:
        """End the command if this is no place for profiles."""
        self._check_tenant()
        if not (self.out or self.url or self.store):
            fail(f"there is nowhere to put the profiles: give --out, --url or --store{self._reason()}")

    def _reason(self) -> str:
        """Why what the environment names is no destination."""
        return f"; without --profile nothing goes where {' or '.join(self.unasked)} says" if self.unasked else ""

    def _check_tenant(self) -> None:
        if self.tenant is not None and self.store is None:
            fail(f"--tenant {self.tenant} goes with --store; on a server the key says whose profiles they are")

    @contextmanager
    def opened(self, file_of: Callable[[Path, str], Path], *, overwrite: bool) -> Iterator[list[Sink]]:
        """Args: file_of: ``out`` and name → file. Raises: SinkFailed if one of them cannot be had."""
        from .sinks import FileSink, ServerSink, StoreSink

        sinks: list[Sink] = []
        with ExitStack() as stack:
            if self.out is not None:
                sinks.append(FileSink(partial(file_of, self.out), overwrite=overwrite))
            if self.url is not None:
                sinks.append(stack.enter_context(closing(ServerSink(self.url, self.api_key, self.tls))))
            if self.store is not None:
                sinks.append(stack.enter_context(closing(StoreSink(self.store, self.tenant or _TENANT))))
            yield sinks
