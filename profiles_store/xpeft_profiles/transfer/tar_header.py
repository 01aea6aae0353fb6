"""The 512 bytes before each member of a tar archive, and the longer names that GNU's and POSIX's archives add."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..errors import SourceInvalid, shown

BLOCK: Final = 512
REGULAR: Final = (b"0", b"\0", b"7")
FOLDER: Final = b"5"
# Members without content, whatever size they claim.
EMPTY: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    FOLDER: "a folder",
    b"6": "a pipe",
}
GNU_SPARSE: Final = b"S"
GNU_NAME: Final = b"L"
GNU_LINK: Final = b"K"
PAX: Final = b"x"
PAX_FOR_ALL: Final = b"g"
NOTES: Final = (GNU_NAME, GNU_LINK, PAX, PAX_FOR_ALL)
"""Members that say something about the next one or about all."""


class TarHeader(NamedTuple):
    """``kind`` is the type flag, ``size`` the content's in bytes.

    ``map_goes_on``: blocks that map the pieces of a sparse member stand before its content, see `map_ends`.
    """

    name: bytes
    size: int
    kind: bytes
    map_goes_on: bool = False


def parse_header(block: bytes) -> TarHeader | None:
    """None at the end of the archive. Raises: SourceInvalid."""
    if not block.strip(b"\0"):
        return None
    if _number(block[148:156]) != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
        raise SourceInvalid(f"{shown(block[:16])} is not the beginning of a tar header: its checksum is wrong")
    name = _text(block[:100])
    # GNU's older form has other things in the place of POSIX's prefix.
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    kind = block[156:157]
    if kind in REGULAR and name.endswith(b"/"):
        kind = FOLDER
    return TarHeader(name, _number(block[124:136]), kind, map_goes_on=kind == GNU_SPARSE and block[482] != 0)


def map_ends(block: bytes) -> bool:
    """Whether this block of a sparse member's map is its last one."""
    return block[504] == 0


def parse_pax(content: bytes) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE\\n`` …, the length being of all of it. Raises: SourceInvalid."""
    fields: dict[bytes, bytes] = {}
    begin = 0
    while begin < len(content):
        digits, blank, _ = content[begin : begin + 20].partition(b" ")
        length = int(digits) if blank and digits.isdigit() else 0
        key, equals, value = content[begin + len(digits) + 1 : begin + length].partition(b"=")
        if not equals or not value.endswith(b"\n") or begin + length > len(content):
            raise SourceInvalid(f"{shown(content[begin : begin + 40])} is not a field of a pax header")
        fields[key] = value[:-1]
        begin += length
    return fields


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Octal digits; or, with the first bit set, the number itself. Raises: SourceInvalid."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0") or b"0"
    if not all(byte in b"01234567" for byte in digits):
        raise SourceInvalid(f"{shown(field)} is not a number of a tar header")
    return int(digits, 8)
