"""``xpeft profiles``: upload, look at, list and remove profiles, and move many of them at once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from xpeft_server.client_tls import ClientTls
from xpeft_server.output_file import output_file

from ..https_options import with_https_options
from ..out_option import check_out_file
from ..screen import fail, say, show_facts, show_json, show_rows
from .client import ClientError, ProfilesClient, shown_upload
from .exports import export_command
from .imports import import_command
from .place import ApiKey

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Upload, inspect, list and remove profiles on a running server; import and export many at once. A"
    " profile is a user's own model, in a few hundred bytes. Its name is private to the tenant of the"
    " API key.",
)

Name = Annotated[str, typer.Argument(help="Profile name: letters, digits, '.', '_' and '-', at most 128.")]
Url = Annotated[
    str,
    typer.Option(envvar="XPEFT_URL", help="URL of the server, http:// or https://."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each profile instead of a table.")]
_LOCAL = "http://127.0.0.1:8000"
app.command(name="import")(import_command)
app.command(name="export")(export_command)


@app.command()
@with_https_options
def put(
    name: Name,
    file: Annotated[Path, typer.Argument(help="A profile file (.safetensors), as xpeft tune writes it.")],
    if_match: Annotated[
        str | None,
        typer.Option(help="Replace only this version (sha256:…), or * for any existing one.", show_default=False),
    ] = None,
    if_none_match: Annotated[
        str | None, typer.Option(help="* to create only, never replace.", show_default=False)
    ] = None,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
    **https: Any,
) -> None:
    """Upload a profile file under a name. Uploading the same file again changes nothing.

    Example: xpeft profiles put alice alice.safetensors --if-none-match '*'
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror or error}")
    try:
        _check_name(name)
        answer = ProfilesClient(url, api_key, ClientTls(**https)).put(
            name, data, if_match=if_match, if_none_match=if_none_match
        )
    except ClientError as error:
        fail(str(error))
    say(shown_upload(name, answer))


@app.command()
@with_https_options
def get(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(help="Write the profile file here instead of showing it.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
    **https: Any,
) -> None:
    """Show a profile's metadata, or with --out download it as a file that can be uploaded again.

    Example: xpeft profiles get alice --out alice.safetensors
    """
    if out is not None:
        check_out_file(out, force=force)
    try:
        _check_name(name)
        client = ProfilesClient(url, api_key, ClientTls(**https))
        if out is not None:
            data = client.file(name)
            with output_file(out, overwrite=force) as file:
                file.write(data)
            say(f"wrote {out} ({len(data)} bytes)")
            return
        profile = client.metadata(name)
    except ClientError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror or error}")
    if as_json:
        show_json(profile)
    else:
        show_facts((key, _shown(key, value)) for key, value in profile.items())


@app.command(name="list")
@with_https_options
def list_profiles(
    prefix: Annotated[str, typer.Option(help="List only names that start with this.", show_default=False)] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number to list. Default: all.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
    **https: Any,
) -> None:
    """List all profiles of the tenant by name.

    Example: xpeft profiles list --prefix team-a. --json
    """
    try:
        profiles = ProfilesClient(url, api_key, ClientTls(**https)).list(prefix=prefix, limit=limit)
        if as_json:
            for profile in profiles:
                show_json(profile)
            return
        columns = ("name", "version", "labels", "bytes", "updated")
        rows = [[_shown(key, profile.get(key)) for key in columns] for profile in profiles]
    except ClientError as error:
        fail(str(error))
    show_rows(columns, ([name, _short(version), *rest] for name, version, *rest in rows))
    say(f"{len(rows)} profile{'' if len(rows) == 1 else 's'}")


@app.command()
@with_https_options
def rm(
    name: Name,
    if_match: Annotated[
        str | None, typer.Option(help="Remove only this version (sha256:…).", show_default=False)
    ] = None,
    url: Url = _LOCAL,
    api_key: ApiKey = None,
    **https: Any,
) -> None:
    """Remove a profile; requests for it get 404 from then on.

    Example: xpeft profiles rm alice
    """
    try:
        _check_name(name)
        ProfilesClient(url, api_key, ClientTls(**https)).delete(name, if_match=if_match)
    except ClientError as error:
        fail(str(error))
    say(f"removed {name}")


def _check_name(name: str) -> None:
    """Refuse here what no server accepts: ``..`` or an empty name would turn into another route on the way."""
    from xpeft_profiles import ProfileInvalid, check_name

    try:
        check_name(name)
    except ProfileInvalid as error:
        raise ClientError(str(error)) from None


def _shown(key: str, value: Any) -> str:
    match value:
        case None:
            return "-"
        case int() | float() if key in ("created", "updated"):
            return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def _short(version: str) -> str:
    """A version's first digits: enough to tell two apart by eye; --json has them all."""
    return version[:19]
