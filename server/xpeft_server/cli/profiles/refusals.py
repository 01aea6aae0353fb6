"""Entries that were refused: the first of them on the screen, all of them in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import typer

from ..screen import fail, plain

if TYPE_CHECKING:
    from xpeft_profiles.transfer import Refusal

_SHOWN: Final = 10


class RefusalsFailed(Exception):
    """The file of refused entries cannot be written; the message is for people."""


class Refusals:
    """Args: file: for a line of JSON each."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file
        self.count = 0

    def add(self, refusals: Sequence[Refusal]) -> None:
        """Raises: RefusalsFailed."""
        for each in refusals:
            self.count += 1
            if self.count <= _SHOWN:
                typer.echo(plain(f"refused {each.where}: {each.error}"), err=True)
            elif self.count == _SHOWN + 1:
                typer.echo("… further ones are counted, and written to --errors FILE if it is given", err=True)
        if self._file is not None:
            self._write(self._file, refusals)

    def _write(self, file: IO[str], refusals: Sequence[Refusal]) -> None:
        try:
            file.writelines(json.dumps(each._asdict()) + "\n" for each in refusals)
            file.flush()
        except OSError as error:
            raise RefusalsFailed(f"{file.name} cannot be written: {error.strerror or error}") from error


@contextmanager
def open_refusals(path: Path | None, *, source: Path) -> Iterator[Refusals]:
    """A file that is there already is replaced, unless it is of the ``source`` that entries are read from."""
    if path is None:
        yield Refusals(None)
        return
    try:
        if _is_of(source, path):
            fail(f"--errors {path} is what is imported: give another file")
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror or error}")
    try:
        yield Refusals(file)
    finally:
        # What could not be written was said, and would be tried once more here.
        with suppress(OSError):
            file.close()


def _is_of(source: Path, path: Path) -> bool:
    """Whether it is the source itself or lies below it, by whatever name. Raises: OSError."""
    real = Path(os.path.realpath(path))
    return real.is_relative_to(os.path.realpath(source)) or (real.exists() and real.samefile(source))
