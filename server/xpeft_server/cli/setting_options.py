"""Options that are the fields of a dataclass, which describes them in their metadata or annotations."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Annotated, Any, get_type_hints

import typer

from xpeft_server.settings import SettingsInvalid
from xpeft_server.settings_source import check_variable, shown_default

from .screen import fail


def setting_options(
    settings: type[Any], *, variables: str, panels: Mapping[tuple[str, ...], str]
) -> list[inspect.Parameter]:
    """An option for each field; without it the command gets None, and the field's default holds.

    Args:
        settings: ``metadata["help"]`` of a field is a sentence without its full stop.
        variables: what the name of each one's environment variable begins with.
        panels: ``metadata["methods"]`` of a field, () without any → title of its part of the help.
    """
    hints = get_type_hints(settings)
    return [
        _option(each, hints[each.name], variables, panels[each.metadata.get("methods", ())])
        for each in fields(settings)
    ]


def field_options(options: type[Any]) -> list[inspect.Parameter]:
    """The fields of a dataclass that are annotated as typer's options, with their defaults."""
    hints = get_type_hints(options, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(each.name, kind, default=each.default, annotation=hints[each.name])
        for each in fields(options)
    ]


def option_name(setting: str) -> str:
    """As it is typed."""
    return f"--{setting.replace('_', '-')}"


def is_typed(context: typer.Context, parameter: str) -> bool:
    """Whether it was given on the command line, not by the environment or by default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def check_variables(context: typer.Context, prefix: str) -> None:
    """End the command if the environment has a variable with this prefix that is not one of its options."""
    known = [each.envvar for each in context.command.params if isinstance(each.envvar, str)]
    try:
        for variable in os.environ:
            if variable.startswith(prefix):
                check_variable(variable, known)
    except SettingsInvalid as error:
        fail(str(error))


def add_options(command: Callable[..., None], options: list[inspect.Parameter]) -> None:
    """Replace the command's ``**options`` by ``options``, for typer to read."""
    hints = get_type_hints(command, include_extras=True)
    own = [
        each.replace(annotation=hints[name])
        for name, each in inspect.signature(command).parameters.items()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]


def _option(setting: Field[Any], kind: Any, variables: str, panel: str) -> inspect.Parameter:
    text, default = setting.metadata["help"], shown_default(setting.default)
    option = typer.Option(
        envvar=f"{variables}{setting.name.upper()}",
        show_default=False,
        help=f"{text[0].upper()}{text[1:]}.{f' Default: {default}.' if default else ''}",
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )
