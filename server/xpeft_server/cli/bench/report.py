"""What becomes of a benchmark's results: a table on the screen, lines of JSON in a file, or one line for a failure."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer

from ..out_option import write_out_file
from ..screen import fail, say, show_rows
from .options import Device, Dtype

if TYPE_CHECKING:
    from xpeft_benchmarks.results import Result

Show = Callable[[Sequence["Result"]], None]


def run(
    name: str,
    settings: dict[str, object],
    measure: Callable[[Sequence[str]], list[Result]],
    data: Path | None,
    json: Path | None,
    *,
    show: Show | None = None,
) -> None:
    """Read the texts, then measure and report."""
    from xpeft_benchmarks.texts import example_texts, read_texts

    pool = example_texts() if data is None else read_texts(data)
    settings = {**settings, "data": "examples" if data is None else data.name}
    report(name, settings, lambda: measure(pool), json, show=show)


def report(
    name: str,
    settings: dict[str, object],
    measure: Callable[[], list[Result]],
    json: Path | None,
    *,
    show: Show | None = None,
) -> None:
    """Measure, show the table, write the lines. ``show``: in place of the table that all benchmarks share."""
    from xpeft_benchmarks.command_line import shown_command, shown_word
    from xpeft_benchmarks.results import Context, write_lines

    writable(json)
    settings = {name: shown_word(value) if isinstance(value, str) else value for name, value in settings.items()}
    context = Context.now(name, shown_command(sys.argv[1:]), settings)
    with _ended_by_sigterm():
        results = measure()
    (show or _show)(results)
    say(f"{context.machine['cpu']}, {context.machine['cores']} cores, {context.date}")
    if json is not None:
        write_out_file(json, lambda path: write_lines(path, results, context))
        say(f"wrote {json}")


def chosen(device: Device, dtype: Dtype) -> tuple[str, str]:
    """What ``auto`` means, as ``xpeft serve`` means it."""
    from ..serve.assembly import choose_device, choose_dtype

    found = choose_device(device)
    return found.type, str(choose_dtype(dtype, found)).removeprefix("torch.")


def step(message: str) -> None:
    """What goes on, on stderr."""
    typer.echo(message, err=True)


@contextmanager
def failures_told(failures: tuple[type[Exception], ...] | None = None) -> Iterator[None]:
    """Turn what a run can be refused for into one line. Without ``failures`` that is what most benchmarks can be."""
    from xpeft_server.settings import SettingsInvalid

    if failures is None:
        from xpeft_benchmarks.failures import FAILURES

        failures = FAILURES
    known: tuple[type[Exception], ...] = (*failures, SettingsInvalid)
    try:
        yield
    except known as error:
        fail(str(error))


def writable(path: Path | None) -> None:
    """Fail now rather than after an hour of measuring, where a file cannot be written."""
    if path is None:
        return
    if path.is_dir():
        reason = "it is a folder"
    elif not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
    # A file is replaced, a pipe written to.
    elif not os.access(path.parent if path.is_file() or not path.exists() else path, os.W_OK):
        reason = "permission denied"
    else:
        return
    fail(f"{path} cannot be written: {reason}")


def _show(results: Sequence[Result]) -> None:
    from xpeft_benchmarks.results import TABLE_COLUMNS, table_rows

    show_rows(TABLE_COLUMNS, table_rows(results))


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that servers, measuring processes and temporary files go, too."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
