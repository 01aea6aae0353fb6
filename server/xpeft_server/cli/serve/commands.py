"""``xpeft serve``: read the settings, put the parts together, run until told to stop."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_server.settings_source import SettingDescription, describe_settings, load_settings

from .open_files import choose_connections, raise_open_files
from .server_logging import configure_server_logging

app = typer.Typer(pretty_exceptions_show_locals=False)


def serve(**options: Any) -> None:
    """Serve classification and, with a causal language model, generation over HTTP, each request with its own profile.

    Without --api-keys every client on this machine is let in, as the tenant "default". SIGTERM or Ctrl-C stops the
    server once the requests in flight are finished.

    Example: xpeft serve --store sqlite:///profiles.db --port 8000
    """
    try:
        settings = load_settings(options, os.environ)
    except SettingsInvalid as error:
        _refuse(error)
    configure_server_logging(settings)
    raise_open_files()
    try:
        connections = choose_connections(settings.connections)
    except SettingsInvalid as error:
        _refuse(error)
    # There is nothing to finish yet; and without a handler a container's first process ignores the signal.
    signal.signal(signal.SIGTERM, lambda *_: _end(0))
    _end(_run(settings, connections))


def _run(settings: Settings, connections: int) -> int:
    # Settings are checked before the seconds that torch takes to be imported.
    from xpeft_profiles import StoreUrlInvalid, open_store
    from xpeft_server.api.access.key_file import KeysInvalid
    from xpeft_server.engine.metrics import Metrics
    from xpeft_server.tenant_limits import LimitsInvalid, choose_tenant_limits

    from .http_parts import build_http_parts
    from .profiler_assembly import prepare_profile_trace
    from .server_socket import bind

    metrics = Metrics(top_profiles=settings.metrics_top_profiles)
    try:
        prepare_profile_trace(settings, os.environ)
        parts = build_http_parts(settings, os.environ, metrics)
        tenants = choose_tenant_limits(settings)
        store = open_store(settings.store)
        listening = bind(settings.host, settings.port)
    except KeysInvalid as error:
        _refuse(f"api_keys: {error} (--api-keys or XPEFT_API_KEYS)")
    except LimitsInvalid as error:
        _refuse(f"tenant_limits: {error} (--tenant-limits or XPEFT_TENANT_LIMITS)")
    except (SettingsInvalid, StoreUrlInvalid, OSError) as error:
        _refuse(error)
    from xpeft_server.model.banks.errors import BankError
    from xpeft_server.model.errors import ModelError

    from .running_server import RunningServer

    try:
        server = RunningServer(
            settings,
            parts,
            store=store,
            tenants=tenants,
            metrics=metrics,
            listening=listening,
            connections=connections,
            environ=os.environ,
        )
    except BankError as error:
        _refuse(f"bank = {settings.bank!r} cannot be used: {error}")
    except (SettingsInvalid, ModelError) as error:
        _refuse(error)
    return server.run()


def _end(code: int) -> NoReturn:
    # Everything is closed by now, and unloading torch can take longer than the time to drain.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _refuse(error: Exception | str) -> NoReturn:
    typer.echo(f"xpeft serve: {error}", err=True)
    typer.echo("Try xpeft serve --help.", err=True)
    raise typer.Exit(2)


def _option(setting: SettingDescription) -> inspect.Parameter:
    default = f"Default: {setting.default}. " if setting.default else ""
    help_text = f"{setting.help[0].upper()}{setting.help[1:]}. {default}Variable: {setting.variable}."
    option = typer.Option(
        setting.option, help=help_text, show_default=False, metavar=None if setting.is_flag else "VALUE"
    )
    annotation = bool | None if setting.is_flag else str | None
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )


# The options are the settings: one place describes each.
serve.__signature__ = inspect.Signature([_option(setting) for setting in describe_settings()])  # type: ignore[attr-defined]
app.command()(serve)
