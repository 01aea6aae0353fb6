"""Bytes from a file of a stranger, zipped or not: never more of them in memory than was asked for."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from ..errors import SourceInvalid

PIECE: Final = 1 << 18
SKIPPED_MAX: Final = 1 << 28
"""Bytes of one entry that are read over; what goes on for longer is no source of profiles but a bomb."""


class BoundedFile:
    """Raises: SourceInvalid from every method."""

    def __init__(self, path: Path, *, gzipped: bool) -> None:
        self._name = path.name
        with self._failures_named():
            self._raw: IO[bytes] = path.open("rb")
        self._file: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=self._raw, mode="rb") if gzipped else self._raw
        with self._failures_named():
            self.total = path.stat().st_size

    @property
    def position(self) -> int:
        """How much of ``total`` was read, zipped as it is."""
        with self._failures_named():
            return self._raw.tell()

    def read(self, size: int) -> bytes:
        """Fewer bytes only at the end."""
        with self._failures_named():
            return self._file.read(size)

    def read_whole(self, size: int) -> bytes:
        """Raises: SourceInvalid if the file ends before."""
        data = self.read(size)
        if len(data) < size:
            raise SourceInvalid(f"{self._name} ends in the middle of an entry")
        return data

    def skip(self, size: int) -> None:
        """Raises: SourceInvalid if the file ends before, or if it is too much."""
        self.check_skip(size)
        while size > 0:
            size -= len(self.read_whole(min(size, PIECE)))

    def check_skip(self, size: int) -> None:
        if size > SKIPPED_MAX:
            raise SourceInvalid(f"{self._name} has an entry of more than {SKIPPED_MAX} bytes: not read any further")

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SourceInvalid(f"{self._name} cannot be read: {reason}") from error
