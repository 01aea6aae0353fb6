"""Every command of ``xpeft``, from the parser that reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from xpeft_server.cli.main import app

from .table import code, table

_EXAMPLE = re.compile(r"^Example: (.*)$", re.MULTILINE)
# Of a server each option is a setting, and has its row there.
_ON_ANOTHER_PAGE = {"xpeft serve": "Its options are the [settings](settings.md)."}


def commands() -> str:
    return "\n\n".join(_command("xpeft", typer.main.get_command(app)))


def _command(path: str, command: Any) -> Iterator[str]:
    """A heading and what follows for the command and for those below it. Args: command: click's or typer's own."""
    level = len(path.split())
    if hasattr(command, "commands"):
        if path != "xpeft":
            yield f"{'#' * level} {path}"
            yield _prose(command.help or "")
        for name, each in sorted(command.commands.items()):
            yield from _command(f"{path} {name}", each)
        return
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", (command.help or "").replace("\n\n    ", "\n\n")).strip()
    yield f"{'#' * level} {path}"
    yield _prose(_EXAMPLE.sub("", text).strip())
    shown = _ON_ANOTHER_PAGE.get(path)
    examples = "\n".join(_EXAMPLE.findall(text))
    if examples:
        yield f"```text\n{examples}\n```"
    yield shown or _parameters(command)


def _parameters(command: Any) -> str:
    rows = []
    panel = None
    for each in command.params:
        if getattr(each, "hidden", False):
            continue
        title = getattr(each, "rich_help_panel", None)
        if title != panel and title is not None:
            rows.append((f"*{title}*", "", ""))
        panel = title
        rows.append((_name(each), "needed" if each.required else code(_default(each)), _prose(_meaning(each))))
    return table(("option", "default", "meaning"), rows)


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return code(parameter.metavar or parameter.name.upper())
    return code(", ".join(parameter.opts))


def _meaning(parameter: Any) -> str:
    text = (getattr(parameter, "help", None) or "").strip()
    variable = parameter.envvar
    if isinstance(variable, str) and variable not in text:
        text = f"{text} Variable: {variable}."
    return text.strip()


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or callable(value) or "UNSET" in repr(value).upper():
        return ""
    return str(value)


def _prose(text: str) -> str:
    """Options, variables and placeholders as code; nothing is taken for HTML or emphasis."""
    text = text.replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*|XPEFT_[A-Z_]+|\{[^}]*\})", r"`\1`", text)
