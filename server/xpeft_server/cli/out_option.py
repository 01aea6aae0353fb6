"""A file that is written when all work is done."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from xpeft_server.output_file import check_writable

from .screen import fail


def check_out_file(out: Path, *, force: bool, size: int = 1) -> None:
    """End the command if the file could not be written then, as far as that can be known before the work.

    Args: size: bytes that it will have at least.
    """
    try:
        check_writable(out, size)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror or error}")
    if out.exists() and not force:
        fail(f"{out} is there already: give another --out, or --force to replace it")


def write_out_file(out: Path, write: Callable[[Path], object]) -> None:
    """Write a result that took long to make. If that fails, write it elsewhere and end the command by saying where."""
    try:
        write(out)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror or error}; {kept_elsewhere(out.name, write)}")


def kept_elsewhere(name: str, write: Callable[[Path], object]) -> str:
    """Write a file into a new folder in the temporary one, at home or here. Returns: a clause that says where."""
    for parent in (None, os.path.expanduser("~"), os.getcwd()):  # noqa: PTH109, PTH111 - a home may be unknown
        try:
            folder = Path(tempfile.mkdtemp(prefix="xpeft-", dir=parent))
        except OSError:
            continue
        try:
            write(folder / name)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return f"what was made is in {folder / name}"
    return "and no other place takes it"
