"""Entries that were refused: the first of them on the screen, all of them in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import typer

from .screen import fail, plain

if TYPE_CHECKING:
    from xpeft_profiles.transfer import Refusal

_SHOWN: Final = 10


class Refusals:
    """Args: file: for a line of JSON each."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file
        self.count = 0

    def add(self, refusals: Iterable[Refusal]) -> None:
        for each in refusals:
            self.count += 1
            if self.count <= _SHOWN:
                typer.echo(plain(f"refused {each.where}: {each.error}"), err=True)
            elif self.count == _SHOWN + 1:
                typer.echo("… further ones are counted, and written to --errors FILE if it is given", err=True)
            if self._file is not None:
                self._file.write(json.dumps(each._asdict()) + "\n")
        if self._file is not None:
            self._file.flush()


@contextmanager
def open_refusals(path: Path | None) -> Iterator[Refusals]:
    """A file that is there already is replaced."""
    if path is None:
        yield Refusals(None)
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror or error}")
    with file:
        yield Refusals(file)
