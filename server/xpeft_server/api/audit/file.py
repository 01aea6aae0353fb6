"""The file of the audit log."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_NEWLINE: Final = b"\n"
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK


class AuditFile:
    """Appends to a file, which it makes with mode 0600, and begins another when that one was moved away.

    Raises: OSError, also from the constructor, if the file cannot be written or is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._open()

    def write(self, lines: Sequence[bytes]) -> None:
        """Append the lines. Whoever failed before may have left the file within one; the next line begins after it."""
        self._follow()
        data = _NEWLINE * self._ends_within_a_line() + b"".join(lines)
        done = 0
        while done < len(data):
            done += os.write(self._file, data[done:])

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> int:
        file = os.open(self._path, _FLAGS, 0o600)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, "not a regular file", str(self._path))
        return file

    def _follow(self) -> None:
        try:
            there = os.stat(self._path)  # noqa: PTH116
        except FileNotFoundError:
            pass
        else:
            if os.path.samestat(there, os.fstat(self._file)):
                return
        file = self._open()
        os.close(self._file)
        self._file = file

    def _ends_within_a_line(self) -> bool:
        size = os.fstat(self._file).st_size
        return size > 0 and os.pread(self._file, 1, size - 1) != _NEWLINE
