"""``xpeft keys``: make, list, rotate and revoke the API keys of a server."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import KeyEntry, KeysInvalid, locked, new_key, read_keys, write_keys

from ..screen import fail, say, show_json, show_rows
from .expiry import age_of, expiry_of, has_expired
from .ids import free_id, live_successor, stem_of

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Make, list, rotate and revoke API keys. A server that was started with --api-keys FILE takes changes of the"
    " file within about a second, without a restart.",
)

File = Annotated[Path, typer.Option(envvar="XPEFT_API_KEYS", help="The file that the server's --api-keys names.")]
Expires = Annotated[
    str | None,
    typer.Option(help="90d, 12h, 30m, or a time such as 2030-01-31T12:00Z.", show_default=False),
]
_COLUMNS: Final = ("id", "tenant", "role", "expires")


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
    expires: Expires = None,
) -> None:
    """Make a key and show it, this once: the file keeps only its SHA-256.

    Example: xpeft keys create --tenant acme --role admin --file keys.json
    """
    if tenant is not None:
        _check_tenant(tenant)
    until = expiry_of(expires)
    try:
        with locked(file):
            entries = read_keys(file) if file.exists() else ()
            free = name or free_id(tenant or role, entries)
            secret, entry = new_key(id=free, tenant=tenant, role=role, expires=until)
            if any(other.id == entry.id for other in entries):
                fail(f"there is a key with the id {entry.id!r} already in {file}")
            write_keys(file, (*entries, entry))
    except KeysInvalid as error:
        fail(str(error))
    except OSError as error:
        fail(_not_written(file, error))
    _show_once(secret, entry, file)


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
            show_json({**dict(zip(_COLUMNS, _row(entry), strict=True)), "expired": has_expired(entry)})
        return
    rows = [[value or "-" for value in _row(entry)] for entry in entries]
    for row, entry in zip(rows, entries, strict=True):
        if has_expired(entry):
            row[-1] += " (expired)"
    show_rows(_COLUMNS, rows)


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the old key, as in the list.")],
    file: File,
    grace: Annotated[
        str, typer.Option(help="How long the old key still opens: 7d, 24h, 30m; 0 revokes it at once.")
    ] = "24h",
    expires: Expires = None,
) -> None:
    """Make a new key for an old one's tenant and role, and let the old one expire after the grace.

    The new key expires only if --expires says so, whatever the old one did. A key that expires within the grace
    anyhow, and has a live successor, is refused.

    Example: xpeft keys rotate acme-1 --grace 1h --file keys.json
    """
    until, overlap = expiry_of(expires), _grace(grace)
    try:
        with locked(file):
            entries = read_keys(file)
            old = next((entry for entry in entries if entry.id == key_id), None)
            if old is None:
                fail(f"there is no key with the id {key_id!r} in {file}")
            kept = _expiring(old, overlap)
            successor = live_successor(old, entries)
            if successor is not None and kept is old:
                fail(
                    f"key {old.id!r} has the live successor {successor.id!r} and expires at {old.expires} already:"
                    " use that one, or make one more with xpeft keys create"
                )
            new_id = free_id(stem_of(old.id), entries)
            secret, new = new_key(id=new_id, tenant=old.tenant, role=old.role, expires=until)
            changed = [kept if entry is old else entry for entry in entries]
            write_keys(file, (*(entry for entry in changed if entry is not None), new))
    except KeysInvalid as error:
        fail(str(error))
    except OSError as error:
        fail(_not_written(file, error))
    fate = "is revoked" if kept is None else f"expires at {kept.expires}"
    typer.echo(f"Key {old.id} {fate}.", err=True)
    if successor is not None:
        typer.echo(f"Key {successor.id}, made after it for the same tenant and role, is live as well.", err=True)
    _show_once(secret, new, file)


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
    except KeysInvalid as error:
        fail(str(error))
    except OSError as error:
        fail(_not_written(file, error))
    say(f"Key {key_id} is revoked.")


def _row(entry: KeyEntry) -> tuple[str | None, ...]:
    return entry.id, entry.tenant, entry.role.value, entry.expires


def _show_once(secret: str, entry: KeyEntry, file: Path) -> None:
    whose = f"{entry.role}, {entry.tenant or 'no tenant'}"
    typer.echo(f"Key {entry.id} ({whose}) is in {file}. It is shown once, now:", err=True)
    say(secret)


def _expiring(entry: KeyEntry, grace: timedelta) -> KeyEntry | None:
    """The key with its end after the grace, or with its own if that is sooner; None if there is no grace."""
    if not grace:
        return None
    end = datetime.now(UTC) + grace
    if entry.expires_at is not None and entry.expires_at <= end.timestamp():
        return entry
    return dataclasses.replace(entry, expires=end.isoformat(timespec="seconds"))


def _grace(text: str) -> timedelta:
    age = timedelta(0) if text == "0" else age_of(text)
    if age is None:
        fail(f"grace = {text!r} is no duration: give it as 7d, 24h or 30m, or 0")
    return age


def _not_written(file: Path, error: OSError) -> str:
    return f"{file} cannot be written: {error.strerror or error}"


def _check_tenant(tenant: str) -> None:
    from xpeft_profiles import ProfileInvalid, check_name

    try:
        check_name(tenant, param="tenant")
    except ProfileInvalid as error:
        fail(str(error))
