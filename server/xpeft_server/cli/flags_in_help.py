"""Help in which a flag stands alone, where typer shows ``<bool>`` behind it, as if it took a value.

And in which a paragraph is folded by the terminal: typer folds it where the source does, too.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class _Command(TyperCommand):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        _bare_flags(self, ctx)
        self.help = _flowing(self.help or "")
        super().format_help(ctx, formatter)


class FlagsGroup(TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        _bare_flags(self, ctx)
        super().format_help(ctx, formatter)


def show_flags_alone(app: typer.Typer) -> None:
    """In the help of the commands that ``app`` has by now."""
    for command in app.registered_commands:
        command.cls = _Command


def _bare_flags(command: TyperCommand | TyperGroup, context: Any) -> None:
    """--help is among the parameters only when they are asked for with the context."""
    parameters: list[Any] = list(command.get_params(context))
    for each in parameters:
        if getattr(each, "is_flag", False):
            each.metavar = ""


def _flowing(text: str) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))
