"""``xpeft keys``: make, list and revoke the API keys of a server."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from xpeft_server.api.auth import Role
from xpeft_server.api.key_file import KeyEntry, KeysInvalid, locked, new_key, read_keys, write_keys

from .screen import fail, say, show_json, show_rows

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Make, list and revoke API keys. A server that was started with --api-keys FILE takes changes of the"
    " file within about a second, without a restart.",
)

File = Annotated[Path, typer.Option(envvar="XPEFT_API_KEYS", help="The file that the server's --api-keys names.")]
_AGES = {"d": "days", "h": "hours", "m": "minutes"}


@app.command()
def create(
    file: File,
    role: Annotated[
        Role,
        typer.Option(
            help="infer: classify, generate and read profiles; admin: write them too; operator: read the whole server's"
            " /metrics."
        ),
    ],
    tenant: Annotated[
        str | None, typer.Option(help="Whose profiles the key opens; an operator needs none.", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--id", help="What the key is called in the list; made up if left out.", show_default=False),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(help="90d, 12h, 30m, or a time such as 2030-01-31T12:00Z.", show_default=False),
    ] = None,
) -> None:
    """Make a key and show it, this once: the file keeps only its SHA-256.

    Example: xpeft keys create --tenant acme --role admin --file keys.json
    """
    try:
        with locked(file):
            entries = read_keys(file) if file.exists() else ()
            secret, entry = new_key(
                id=name or _free_id(tenant or role, entries), tenant=tenant, role=role, expires=_moment(expires)
            )
            if any(other.id == entry.id for other in entries):
                fail(f"there is a key with the id {entry.id!r} already in {file}")
            write_keys(file, (*entries, entry))
    except (KeysInvalid, OSError) as error:
        fail(str(error))
    typer.echo(f"Key {entry.id} ({role}, {tenant or 'no tenant'}) is in {file}. It is shown once, now:", err=True)
    say(secret)


@app.command("list")
def list_keys(
    file: File, as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each key.")] = False
) -> None:
    """Show who has keys; the keys themselves are nowhere to be read."""
    try:
        entries = read_keys(file)
    except KeysInvalid as error:
        fail(str(error))
    if as_json:
        for entry in entries:
            show_json(dict(zip(("id", "tenant", "role", "expires"), _row(entry), strict=True)))
        return
    show_rows(("id", "tenant", "role", "expires"), [[value or "-" for value in _row(entry)] for entry in entries])


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="The id, as in the list.")], file: File) -> None:
    """Take a key away; a running server refuses it within about a second."""
    try:
        with locked(file):
            entries = read_keys(file)
            left = tuple(entry for entry in entries if entry.id != key_id)
            if len(left) == len(entries):
                fail(f"there is no key with the id {key_id!r} in {file}")
            write_keys(file, left)
    except (KeysInvalid, OSError) as error:
        fail(str(error))
    say(f"Key {key_id} is revoked.")


def _row(entry: KeyEntry) -> tuple[str | None, ...]:
    return entry.id, entry.tenant, entry.role.value, entry.expires


def _free_id(stem: str, entries: tuple[KeyEntry, ...]) -> str:
    taken = {entry.id for entry in entries}
    number = 1
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def _moment(expires: str | None) -> str | None:
    """An age such as ``90d`` becomes the time that it stands for; a time stays as it is."""
    age = re.fullmatch(r"(\d{1,6})([dhm])", expires or "")
    if age is None:
        return expires
    moment = datetime.now(UTC) + timedelta(**{_AGES[age[2]]: int(age[1])})
    return moment.isoformat(timespec="seconds")
