"""A file that is there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def output_file(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """Write beside ``path`` and move into place at the end; an error on the way leaves what was there before.

    Readers that have mapped the file that is replaced keep the old one.

    Raises: FileExistsError if there is a file at the start or at the end, unless ``overwrite``; OSError.
    """
    if not overwrite and path.exists():
        raise FileExistsError(f"{path} is there already")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.draft")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not overwrite:
            path.touch(exist_ok=False)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
