"""A tar archive of profile files, read from its beginning to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ProfileInvalid, SourceInvalid, shown
from .bounded_file import BoundedFile
from .entries import Entry, Refusal, address_of, is_hidden
from .tar_header import (
    BLOCK,
    EMPTY,
    FOLDER,
    GNU_NAME,
    NOTES,
    PAX,
    REGULAR,
    TarHeader,
    map_ends,
    parse_header,
    parse_pax,
)

NOTE_BYTES: Final = 1 << 16
"""What a longer name or a pax header may measure."""


class TarSource:
    """Nothing is unpacked: members are read into memory, one at a time. Args: max_bytes: of a profile file."""

    def __init__(self, path: Path, *, gzipped: bool, max_bytes: int) -> None:
        self._file = BoundedFile(path, gzipped=gzipped)
        self._name = path.name
        self._max_bytes = max_bytes

    @property
    def bytes_total(self) -> int | None:
        return self._file.total

    @property
    def bytes_read(self) -> int:
        return self._file.position

    def entries(self) -> Iterator[Entry | Refusal]:
        try:
            while (header := self._next_header()) is not None:
                found = self._entry(header)
                if found is not None:
                    yield found
        except SourceInvalid as error:
            raise SourceInvalid(f"{self._name}: {error.message.removeprefix(self._name).strip(': ')}") from error

    def close(self) -> None:
        self._file.close()

    def _next_header(self) -> TarHeader | None:
        """Of the next member that is something itself, with what notes before it said of it."""
        name: bytes | None = None
        fields: dict[bytes, bytes] = {}
        while True:
            header = self._header()
            if header is None or header.kind not in NOTES:
                break
            if header.size > NOTE_BYTES:
                raise SourceInvalid(f"a header of {header.size} bytes, at most {NOTE_BYTES} are allowed")
            content = self._content(header.size)
            if header.kind == GNU_NAME:
                name = content.rstrip(b"\0")
            elif header.kind == PAX:
                fields = parse_pax(content)
        if header is None:
            return None
        size = fields.get(b"size", b"%d" % header.size)
        if not size.isdigit() or len(size) > 30:
            raise SourceInvalid(f"{shown(size)} is not a size")
        return header._replace(name=fields.get(b"path", name if name is not None else header.name), size=int(size))

    def _header(self) -> TarHeader | None:
        block = self._file.read(BLOCK)
        if not block:
            raise SourceInvalid("it ends without its end marker: it was cut off")
        if len(block) < BLOCK:
            raise SourceInvalid("it ends in the middle of a header")
        header = parse_header(block)
        if header is not None and header.map_goes_on:
            self._skip_map()
        return header

    def _entry(self, header: TarHeader) -> Entry | Refusal | None:
        """None for a folder, which says nothing, and for a hidden file."""
        path = header.name.decode(errors="replace")
        where = f"{self._name}: {shown(path)}"
        if header.kind == FOLDER:
            return None
        if header.kind in EMPTY:
            return Refusal(where, None, f"the member is {EMPTY[header.kind]}, not a file")
        if is_hidden(path):
            self._file.skip(_padded(header.size))
            return None
        refused: str | None = None
        if header.kind not in REGULAR:
            refused = f"the member is of a kind that is not known ({shown(header.kind)})"
        elif header.size > self._max_bytes:
            refused = f"has {header.size} bytes, at most {self._max_bytes} are allowed"
        if refused is not None:
            self._file.skip(_padded(header.size))
            return Refusal(where, None, refused)
        content = self._content(header.size)
        try:
            return Entry(where, *address_of(path), content)
        except ProfileInvalid as error:
            return Refusal(where, None, error.message)

    def _skip_map(self) -> None:
        size = BLOCK
        while not map_ends(self._file.read_whole(BLOCK)):
            size += BLOCK
            self._file.check_skip(size)

    def _content(self, size: int) -> bytes:
        return self._file.read_whole(_padded(size))[:size]


def _padded(size: int) -> int:
    return size + -size % BLOCK
