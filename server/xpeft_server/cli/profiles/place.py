"""Which server or store an import goes to or an export comes from, as it was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xpeft_server.client_tls import ClientTls

from ..https_options import refuse_https_options
from ..screen import fail
from ..setting_options import is_typed

if TYPE_CHECKING:
    from xpeft_profiles import ProfileStore

StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="XPEFT_STORE",
        help="Profile store to use directly, without a server: sqlite:///FILE or redis://….",
        show_default=False,
    ),
]
Tenant = Annotated[str | None, typer.Option(help="Tenant of the profiles in the store.", show_default=False)]
ServerUrl = Annotated[
    str | None, typer.Option("--url", envvar="XPEFT_URL", help="URL of the server.", show_default=False)
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_API_KEY",
        help="API key of the tenant. Prefer the variable: other users of this machine can see options.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class StorePlace:
    url: str
    tenant: str | None


@dataclass(frozen=True, kw_only=True)
class ServerPlace:
    """The key says whose the profiles are."""

    url: str
    api_key: str | None
    tls: ClientTls


def chosen_place(
    context: typer.Context,
    *,
    store: str | None,
    tenant: str | None,
    url: str | None,
    api_key: str | None,
    tls: ClientTls,
) -> StorePlace | ServerPlace:
    """What was typed counts before what stands in the environment. Ends the command if no one place is named."""
    given = {"store": store, "url": url}
    there = [name for name, value in given.items() if value is not None]
    typed = [name for name in there if is_typed(context, name)]
    if len(typed) > 1:
        fail("--store and --url are two places: give one of them")
    if not there:
        fail("no store or server given: give --store, or --url, or XPEFT_URL")
    if not typed and len(there) > 1:
        fail("XPEFT_STORE and XPEFT_URL are two places: say with --store or --url which of them")
    (name,) = typed or there
    if name == "url" and tenant is not None:
        fail(f"--tenant {tenant} goes with --store; on a server the key says whose profiles they are")
    if name == "url":
        return ServerPlace(url=given[name] or "", api_key=api_key, tls=tls)
    refuse_https_options(context, "is of a server: give --url")
    return StorePlace(url=given[name] or "", tenant=tenant)


def shown_place(place: StorePlace | ServerPlace) -> str:
    """For people: without a password, and with the tenant if there is one."""
    from xpeft_profiles.store_url import CREDENTIALS

    url = CREDENTIALS.sub("…", place.url)
    tenant = place.tenant if isinstance(place, StorePlace) else None
    return url if tenant is None else f"{url} of the tenant {tenant!r}"


def missing_store(place: StorePlace) -> Path | None:
    """The store's SQLite file, if it is not there or empty: to write to it would make the store."""
    from xpeft_profiles.store_url import SQLITE

    if not place.url.startswith(SQLITE):
        return None
    path = Path(place.url.removeprefix(SQLITE))
    try:
        return None if path.stat().st_size else path
    except FileNotFoundError:
        return path
    except (OSError, ValueError):
        return None  # What is wrong with the file or its name is said by who opens it.


def open_store_at(place: StorePlace, *, read_only: bool) -> ProfileStore:
    """Not connected yet. Raises: ProfileStoreError."""
    from xpeft_profiles import check_name, open_store

    if place.tenant is not None:
        check_name(place.tenant, param="tenant")
    store = open_store(place.url, read_only=read_only)
    if store.scheme == "memory":
        fail(f"store is {place.url!r}: its profiles are in no other process than the server's")
    return store
