"""JSON lines, ``{"tenant"?, "name", "file"}``, the file in base64."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..errors import ProfileInvalid, shown
from ..file.header import parse_json
from .base64_batch import decode_base64
from .bounded_file import PIECE, BoundedFile
from .entries import Entry, Refusal

FIELDS: Final = ("tenant", "name", "file")
# The beginning of a line as an export writes it: what follows is base64 and `"}`. Any other line is parsed as JSON.
_PLAIN: Final = re.compile(rb'\{(?:"tenant": ?"([\w.-]*)", ?)?"name": ?"([\w.-]*)", ?"file": ?"')


class JsonlSource:
    """Args: max_bytes: of a profile file."""

    def __init__(self, path: Path, *, gzipped: bool, max_bytes: int) -> None:
        self._file = BoundedFile(path, gzipped=gzipped)
        self._name = path.name
        # Base64 takes 4/3, and JSON may write a slash as two characters.
        self._line_max = 2 * max_bytes + 4096

    @property
    def bytes_total(self) -> int | None:
        return self._file.total

    @property
    def bytes_read(self) -> int:
        return self._file.position

    def entries(self) -> Iterator[Entry | Refusal]:
        first = 1
        for lines in self._pieces():
            yield from self._parsed(first, lines)
            first += len(lines)

    def close(self) -> None:
        self._file.close()

    def _pieces(self) -> Iterator[list[bytes | None]]:
        """Some lines at a time; None for one that is too long."""
        rest = b""
        while piece := self._file.read(PIECE):
            lines: list[bytes | None] = [*(rest + piece).split(b"\n")]
            rest = lines.pop() or b""
            yield lines
            if len(rest) > self._line_max:
                rest = self._after_line(len(rest))
                yield [None]
        yield [*rest.split(b"\n")]

    def _after_line(self, read: int) -> bytes:
        """Read over the rest of a line. Returns: what was read of those after it."""
        while piece := self._file.read(PIECE):
            _, end, following = piece.partition(b"\n")
            if end:
                return following
            read += len(piece)
            self._file.check_skip(read)
        return b""

    def _parsed(self, first: int, lines: list[bytes | None]) -> Iterator[Entry | Refusal]:
        """Args: first: the number of the first of the lines."""
        begins = [_PLAIN.match(line) if line is not None and line.endswith(b'"}') else None for line in lines]
        texts = [line[begin.end() : -2] for line, begin in zip(lines, begins, strict=True) if line and begin]
        files = iter(decode_base64(texts))
        for number, (line, begin) in enumerate(zip(lines, begins, strict=True), first):
            where = f"{self._name}:{number}"
            file = next(files) if begin is not None else None
            if begin is not None and file is not None:
                tenant, name = begin.groups()
                yield Entry(where, None if tenant is None else tenant.decode(), name.decode(), file)
            elif line is None or len(line) > self._line_max:
                yield Refusal(where, None, f"the line is longer than {self._line_max} bytes")
            elif line and not line.isspace():
                yield _entry(where, line)


def _entry(where: str, line: bytes) -> Entry | Refusal:
    name = None
    try:
        fields = parse_json(line.decode(), "line")
        if not isinstance(fields, dict):
            raise ProfileInvalid(f"{shown(fields)} is not a JSON object", "line")
        found = fields.get("name")
        name = found if isinstance(found, str) else None
        for field in fields:
            if field not in FIELDS:
                raise ProfileInvalid(f"a line may only have {', '.join(FIELDS)}", shown(field))
        tenant = _text(fields, "tenant") if "tenant" in fields else None
        return Entry(where, tenant, _text(fields, "name"), _bytes(_text(fields, "file")))
    except UnicodeDecodeError as error:
        return Refusal(where, name, f"the line is not UTF-8 at byte {error.start}")
    except ProfileInvalid as error:
        return Refusal(where, name, error.message)


def _text(fields: dict[str, object], field: str) -> str:
    if field not in fields:
        raise ProfileInvalid("the line must have it", field)
    value = fields[field]
    if not isinstance(value, str):
        raise ProfileInvalid(f"{shown(value)} is not a string", field)
    return value


def _bytes(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text.encode(), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ProfileInvalid(f"{shown(text)} is not base64 ({error})", "file") from error
