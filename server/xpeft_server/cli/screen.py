"""What commands say to people (tables, one line for a failure) and to programs (JSON)."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 250  # columns of a table for a reader that is a file or grep; its facts are never folded

_INTERRUPTED: Final = 130  # 128 and the number of SIGINT


def fail(message: str) -> NoReturn:
    """End the command with exit code 1 and one line on stderr."""
    Console(stderr=True, soft_wrap=True).print(Text("xpeft: ", style="bold red") + Text(plain(message)))
    raise typer.Exit(1)


def stop(message: str) -> NoReturn:
    """End the command as Ctrl-C does, with one line on stderr."""
    typer.echo(plain(f"stopped: {message}"), err=True)
    raise typer.Exit(_INTERRUPTED)


def say(message: str) -> None:
    """One line on stdout, as it is."""
    typer.echo(plain(message))


def show_json(value: object) -> None:
    """One line of JSON on stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """A table of two columns: what, and its value."""
    rows = [(name, plain(value)) for name, value in facts]
    if not sys.stdout.isatty():
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            typer.echo(f"{name:{width}}  {value}".rstrip())
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    Console().print(table)


def show_rows(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a header, a line for each row where the terminal is wide enough."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(value)) for value in row))
    if sys.stdout.isatty():
        Console().print(table)
        return
    shown = io.StringIO()
    Console(file=shown, width=_PIPE_WIDTH).print(table)
    for line in shown.getvalue().splitlines():
        typer.echo(line.rstrip())


def plain(text: str) -> str:
    """Text from elsewhere on one line and without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
