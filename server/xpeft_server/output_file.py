"""A file that is there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def output_file(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """Write beside ``path`` and move into place at the end; an error on the way leaves what was there before.

    Readers that have mapped the file that is replaced keep the old one. A link stays: what it leads to is written, with
    the mode of the file that it takes the place of.

    Raises: FileExistsError if there is a file at the start or at the end, unless ``overwrite``; OSError.
    """
    if not overwrite and path.exists():
        raise FileExistsError(errno.EEXIST, "it is there already", str(path))
    path = Path(os.path.realpath(path))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}.draft")
    try:
        with draft.open("xb") as file:
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not overwrite:
            path.touch(exist_ok=False)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check_writable(path: Path, size: int = 1) -> None:
    """Raises: OSError if `output_file` could not write so many bytes, as far as that can be known before the work."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    path = Path(os.path.realpath(path))
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
        disk = os.fstatvfs(file.fileno())
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < size:  # some file systems do not tell, and have 0 of all
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
