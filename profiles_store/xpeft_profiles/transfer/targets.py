"""What profiles are exported to."""

from __future__ import annotations

import gzip
import tarfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, TypeAlias

from .entries import path_of
from .formats import Form, Format
from .tar_header import BLOCK

Output: TypeAlias = IO[bytes] | gzip.GzipFile


class Target(Protocol):
    """Args: tenant: None where entries name none; name: as tenant, checked; updated: seconds since 1970.

    Raises: OSError.
    """

    def add(self, tenant: str | None, name: str, file: bytes, *, updated: float) -> None: ...


class FolderTarget:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._tenants: set[str] = set()

    def add(self, tenant: str | None, name: str, file: bytes, *, updated: float) -> None:
        if tenant is not None and tenant not in self._tenants:
            (self._path / tenant).mkdir()
            self._tenants.add(tenant)
        with (self._path / path_of(tenant, name)).open("xb") as entry:
            entry.write(file)


class TarTarget:
    def __init__(self, file: Output) -> None:
        self._file = file

    def add(self, tenant: str | None, name: str, file: bytes, *, updated: float) -> None:
        member = tarfile.TarInfo(path_of(tenant, name))
        member.size = len(file)
        member.mtime = int(updated)
        self._file.write(member.tobuf(tarfile.GNU_FORMAT) + file + bytes(-len(file) % BLOCK))

    def finish(self) -> None:
        self._file.write(bytes(2 * BLOCK))


class JsonlTarget:
    def __init__(self, file: Output) -> None:
        self._file = file

    def add(self, tenant: str | None, name: str, file: bytes, *, updated: float) -> None:
        # Names are letters, digits and three signs, none of which JSON would write otherwise.
        owner = "" if tenant is None else f'"tenant":"{tenant}",'
        self._file.write(b'{%b"name":"%b","file":"%b"}\n' % (owner.encode(), name.encode(), b64encode(file)))


@contextmanager
def open_target(file: Output, form: Format) -> Iterator[Target]:
    """A tar or JSON lines into an open file, which stays open; ended as it should at the end of the block."""
    if form.gzipped:
        plain = form._replace(gzipped=False)
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped, open_target(zipped, plain) as target:
            yield target
    elif form.form is Form.TAR:
        archive = TarTarget(file)
        yield archive
        archive.finish()
    else:
        yield JsonlTarget(file)
