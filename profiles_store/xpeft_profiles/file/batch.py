"""Reads many profile files at once: files with the same header are decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import ProfileInvalid
from ..profile import record_version
from ..record.writer import encode_record
from .header import LENGTH_BYTES
from .layout import FileLayout
from .reader import read_profile_file

TOGETHER = 512  # files decoded at once: the arrays of more do not fit into the processor's cache


class FileRecord(NamedTuple):
    """What a store keeps of a profile file."""

    version: str
    record: bytes


def read_file_batch(files: Sequence[bytes], *, max_bytes: int | None = None) -> list[FileRecord | ProfileInvalid]:
    """Read profile files, trusting nothing in them; one answer a file.

    Semantics: out[i] = encode_record(read_profile_file(files[i], max_bytes=max_bytes)), or what it raised

    Files of equal length and header share everything that follows from the header. The values are checked for all files
    at once; a file that does not pass is read alone, to find out why.
    """
    answers: list[FileRecord | ProfileInvalid | None] = [None] * len(files)
    for alike in _alike(files).values():
        rest = iter(alike)
        for place in rest:
            answers[place] = answer = _read_alone(files[place], max_bytes)
            if isinstance(answer, FileRecord):
                _read_like(files, answers, place, list(rest))
    return [
        _read_alone(data, max_bytes) if answer is None else answer for data, answer in zip(files, answers, strict=True)
    ]


def _alike(files: Sequence[bytes]) -> dict[tuple[int, bytes], list[int]]:
    """Length and header → places."""
    alike: dict[tuple[int, bytes], list[int]] = {}
    size, header, places = -1, b"", list[int]()
    for place, data in enumerate(files):
        if len(data) != size or not data.startswith(header):
            size, header = len(data), data[: LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")]
            places = alike.setdefault((size, header), [])
        places.append(place)
    return alike


def _read_like(
    files: Sequence[bytes], answers: list[FileRecord | ProfileInvalid | None], first: int, rest: list[int]
) -> None:
    """Fill in the answers of the other files that are valid, too; the rest stay None."""
    answer = answers[first]
    if not rest or not isinstance(answer, FileRecord):
        return
    layout = FileLayout(files[first], answer.record)
    for start in range(0, len(rest), TOGETHER):
        some = rest[start : start + TOGETHER]
        for place, record in zip(some, layout.records([files[place] for place in some]), strict=True):
            if record is not None:
                answers[place] = FileRecord(record_version(record), record)


def _read_alone(data: bytes, max_bytes: int | None) -> FileRecord | ProfileInvalid:
    try:
        record = encode_record(read_profile_file(data, max_bytes=max_bytes))
    except ProfileInvalid as error:
        return error
    return FileRecord(record_version(record), record)
