"""What commands say to people (tables, one line for a failure) and to programs (JSON)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 250  # columns; nothing is folded for a reader that is a file or grep


def fail(message: str) -> NoReturn:
    """End the command with exit code 1 and one line on stderr."""
    Console(stderr=True, soft_wrap=True).print(Text("xpeft: ", style="bold red") + Text(plain(message)))
    raise typer.Exit(1)


def say(message: str) -> None:
    """One line on stdout, as it is."""
    typer.echo(plain(message))


def show_json(value: object) -> None:
    """One line of JSON on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """A table of two columns: what, and its value."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(plain(value)))
    _console().print(table)


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a header, a line for each row where the terminal is wide enough."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(value)) for value in row))
    _console().print(table)


def plain(text: str) -> str:
    """Text from elsewhere on one line and without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
