"""A file that is written when all work is done."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .screen import fail


def check_out_file(out: Path, *, force: bool) -> None:
    """End the command if the file could not be written then, as far as that can be known before the work."""
    if out.is_dir():
        fail(f"{out} is a folder: give --out a file")
    if out.exists() and not force:
        fail(f"{out} is there already: give another --out, or --force to replace it")
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}."):
            pass
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror or error}")
