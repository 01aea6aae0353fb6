"""The TLS options of commands that are clients of a server."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, TypeVar

import typer

from xpeft_server.client_tls import ClientTls

from .screen import fail
from .setting_options import add_options, is_typed, option_name, setting_options

Command = TypeVar("Command", bound=Callable[..., None])
_PANEL: Final = "A server over https"


def https_options() -> list[inspect.Parameter]:
    """One for each field of `ClientTls`."""
    return setting_options(ClientTls, variables="XPEFT_", panels={(): _PANEL})


def with_https_options(command: Command) -> Command:
    """Replace the command's ``**https`` by the options."""
    add_options(command, https_options())
    return command


def take_https_options(options: dict[str, Any]) -> ClientTls:
    """Take them out of ``options``."""
    return ClientTls(**{each.name: options.pop(each.name) for each in fields(ClientTls)})


def refuse_https_options(context: typer.Context, why: str) -> None:
    """End the command if one of them was typed."""
    for each in fields(ClientTls):
        if is_typed(context, each.name):
            fail(f"{option_name(each.name)} {why}")
