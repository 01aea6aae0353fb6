"""Where settings come from: an option and a variable for each, described, read and checked."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import NamedTuple

from pydantic import ValidationError

from .settings import Settings, SettingsInvalid, without_password

PREFIX = "XPEFT_"
# Variables of the commands that are clients of a server; among a server's own they are no mistake.
CLIENT_VARIABLES = frozenset(
    {"XPEFT_URL", "XPEFT_API_KEY", "XPEFT_CLIENT_CERTIFICATE", "XPEFT_CLIENT_KEY", "XPEFT_AUTHORITY"}
)
# Prefixes of other commands' variables.
_OF_OTHERS = ("XPEFT_TUNE_", "XPEFT_BANK_TRAIN_", "XPEFT_AGAINST_")


class SettingDescription(NamedTuple):
    """One row of the README's table and one option of ``xpeft serve``. ``default`` is as one would type it."""

    name: str
    option: str
    variable: str
    default: str
    help: str
    is_flag: bool


def describe_settings() -> tuple[SettingDescription, ...]:
    """Every setting, in the order of the class: the one place that help, README and tests read."""
    return tuple(
        SettingDescription(
            name=name,
            option="--" + name.replace("_", "-"),
            variable=PREFIX + name.upper(),
            default=shown_default(field.default),
            help=field.description or "",
            is_flag=field.annotation is bool,
        )
        for name, field in Settings.model_fields.items()
    )


def shown_default(value: object) -> str:
    """As it is typed on the command line; empty for None."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def load_settings(options: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """The settings of one start: an option wins over its variable, a variable over the default.

    Args:
        options: what the command line gave, by setting name; ``None`` stands for not given.
        environ: the process environment; read here and never again.
    Raises: SettingsInvalid, naming key and value, also for a ``XPEFT_…`` variable that nothing reads.
    """
    values = _from_environment(environ)
    values.update({name: value for name, value in options.items() if value is not None})
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsInvalid("\n".join(_reason(dict(item)) for item in error.errors())) from None


def check_variable(variable: str, known: Collection[str]) -> None:
    """Raises: SettingsInvalid, without the variable's value, which may be a key, if it is none of those known."""
    if variable not in known:
        near = difflib.get_close_matches(variable, known, n=1, cutoff=0.0)
        raise SettingsInvalid(f"{variable} is not a setting; the nearest is {near[0]}")


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    known = {setting.variable: setting.name for setting in describe_settings()}
    values: dict[str, object] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable in CLIENT_VARIABLES or variable.startswith(_OF_OTHERS):
            continue
        check_variable(variable, [*known, *CLIENT_VARIABLES])
        if not value:
            raise SettingsInvalid(f"{variable} is empty; give it a value or unset it")
        values[known[variable]] = value
    return values


def _reason(error: dict[str, object]) -> str:
    location = error["loc"]
    message = str(error["msg"]).removeprefix("Value error, ")
    if not isinstance(location, tuple) or not location:
        return message
    name = str(location[0])
    value = without_password(repr(error["input"]))
    return f"{name} = {value} cannot be used: {message} (--{name.replace('_', '-')} or {PREFIX}{name.upper()})"
