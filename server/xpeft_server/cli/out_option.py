"""A file that is written when all work is done."""

from __future__ import annotations

from pathlib import Path

from xpeft_server.output_file import check_writable

from .screen import fail


def check_out_file(out: Path, *, force: bool) -> None:
    """End the command if the file could not be written then, as far as that can be known before the work."""
    try:
        check_writable(out)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror or error}")
    if out.exists() and not force:
        fail(f"{out} is there already: give another --out, or --force to replace it")
