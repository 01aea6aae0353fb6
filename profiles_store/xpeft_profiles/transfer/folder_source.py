"""A folder of profile files, ``NAME.safetensors`` or ``TENANT/NAME.safetensors``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import ProfileInvalid, SourceInvalid
from .entries import Entry, Refusal, address_of, is_hidden


class FolderSource:
    """In the order in which the system names them; links are not followed, hidden files are left out.

    Args: max_bytes: of a profile file.
    """

    bytes_total: int | None = None

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self.bytes_read = 0

    def entries(self) -> Iterator[Entry | Refusal]:
        try:
            with os.scandir(self._path) as found:
                for each in _visible(found):
                    if each.is_dir(follow_symlinks=False):
                        yield from self._of_tenant(each)
                    else:
                        yield self._entry(each, each.name)
        except OSError as error:
            raise SourceInvalid(f"{self._path} cannot be read: {error.strerror or error}") from error

    def close(self) -> None:
        pass

    def _of_tenant(self, folder: os.DirEntry[str]) -> Iterator[Entry | Refusal]:
        with os.scandir(folder.path) as found:
            for each in _visible(found):
                yield self._entry(each, f"{folder.name}/{each.name}")

    def _entry(self, found: os.DirEntry[str], path: str) -> Entry | Refusal:
        if not found.is_file(follow_symlinks=False):
            kind = "a link" if found.is_symlink() else "not a file"
            return Refusal(path, None, f"is {kind}, it is not followed")
        try:
            tenant, name = address_of(path)
            with Path(found.path).open("rb") as file:
                data = file.read(self._max_bytes + 1)
        except ProfileInvalid as error:
            return Refusal(path, None, error.message)
        except OSError as error:
            return Refusal(path, None, f"cannot be read: {error.strerror or error}")
        self.bytes_read += len(data)
        return Entry(path, tenant, name, data)


def _visible(found: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    return (each for each in found if not is_hidden(each.name))
