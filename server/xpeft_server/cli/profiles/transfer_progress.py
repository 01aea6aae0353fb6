"""How far an import or export is: a bar on a terminal, a line now and then elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LINE_SECONDS: Final = 1.0


class TransferProgress:
    """Profiles, how many a second, and the time that is left where it is known how much there is.

    Args: verb: what is done to them, as in ``imported``; total: bytes that are to be read, None where nobody knows.
    """

    def __init__(self, verb: str, *, total: int | None) -> None:
        self._verb = verb
        self._total = total
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not sys.stderr.isatty():
            yield
            return
        columns = (
            TextColumn("{task.fields[profiles]:,} profiles"),
            BarColumn(),
            TextColumn("{task.fields[rate]:,.0f} profiles/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), speed_estimate_period=300)
        self._task = self._bar.add_task(self._verb, total=self._total, profiles=0, rate=0.0)
        with self._bar:
            yield

    def step(self, profiles: int, position: int) -> None:
        """So many profiles, and so many bytes of the total, are done."""
        now = time.monotonic()
        rate = profiles / max(now - self._began, 1e-9)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=position, profiles=profiles, rate=rate)
        elif now - self._said >= _LINE_SECONDS:
            self._said = now
            share = f", {100 * position / self._total:.0f} %" if self._total else ""
            typer.echo(f"{self._verb} {profiles} profiles, {rate:,.0f} a second{share}", err=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
