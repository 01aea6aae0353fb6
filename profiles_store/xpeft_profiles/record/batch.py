"""Turns many records into files at once: records with the same header and text are converted together."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordDamaged
from ..file.header import LENGTH_BYTES
from ..file.writer import write_profile_file
from ..stacked_arrays import MASKS, Arrays, are_in_range, are_masks, bytes_of, everywhere
from .layout import CHECKSUM, HARD, HEADER, RecordHeader
from .reader import NEGATIVE_ZERO, array_shapes, decode_record

TOGETHER = 512  # records converted at once: the arrays of more do not fit into the processor's cache


def write_file_batch(records: Sequence[bytes]) -> list[bytes | RecordDamaged]:
    """The profile file of each record, trusting nothing in it; one answer a record.

    Semantics: out[i] = write_profile_file(decode_record(records[i])), or what it raised

    Records of equal length, header and text share a file's header. The values are checked for all records at once; a
    record that does not pass is read alone, to find out why.
    """
    answers: list[bytes | RecordDamaged | None] = [None] * len(records)
    for alike in _alike(records).values():
        rest = iter(alike)
        for place in rest:
            answers[place] = answer = _write_alone(records[place])
            if isinstance(answer, bytes):
                _write_like(records, answers, _Form(records[place], answer), list(rest))
    return [_write_alone(record) if answer is None else answer for record, answer in zip(records, answers, strict=True)]


def _alike(records: Sequence[bytes]) -> dict[tuple[int, bytes], list[int]]:
    """Length and what comes before the arrays → places."""
    alike: dict[tuple[int, bytes], list[int]] = {}
    for place, record in enumerate(records):
        text_bytes = RecordHeader(*HEADER.unpack_from(record)).text_bytes if len(record) >= HEADER.size else 0
        alike.setdefault((len(record), record[: HEADER.size + text_bytes]), []).append(place)
    return alike


def _write_like(
    records: Sequence[bytes], answers: list[bytes | RecordDamaged | None], form: _Form, rest: list[int]
) -> None:
    """Fill in the answers of the other records that are valid, too; the rest stay None."""
    for start in range(0, len(rest), TOGETHER):
        some = rest[start : start + TOGETHER]
        for place, file in zip(some, form.files([records[place] for place in some]), strict=True):
            answers[place] = file


def _write_alone(record: bytes) -> bytes | RecordDamaged:
    try:
        return write_profile_file(decode_record(record))
    except RecordDamaged as error:
        return error


class _Form:
    """What records share that begin alike.

    Args: record: one of them, in order; file: its profile file.
    """

    def __init__(self, record: bytes, file: bytes) -> None:
        header = RecordHeader(*HEADER.unpack_from(record))
        self._hard = bool(header.flags & HARD)
        self._adapters = header.adapters
        self._shapes = array_shapes(header)
        self._offset = HEADER.size + header.text_bytes
        self._begin = np.frombuffer(file, np.uint8, LENGTH_BYTES + int.from_bytes(file[:LENGTH_BYTES], "little"))

    def files(self, records: Sequence[bytes]) -> list[bytes | None]:
        """Args: records that begin as the first one and are as long.

        Returns: their files; None for a record that is not, or not certainly, in order.
        """
        arrays, good = self._read(np.frombuffer(b"".join(records), np.uint8).reshape(len(records), -1))
        good &= [_sum_is_right(record) for record in records]
        with np.errstate(invalid="ignore"):
            good &= are_in_range(arrays) & are_masks(arrays)
        parts = [np.broadcast_to(self._begin, (len(records), len(self._begin)))]
        rows = np.concatenate([*parts, *map(bytes_of, arrays.values())], axis=1)
        return [row.tobytes() if is_good else None for row, is_good in zip(rows, good.tolist(), strict=True)]

    def _read(self, bodies: NDArray[np.uint8]) -> tuple[Arrays, NDArray[np.bool_]]:
        """The arrays of a file, and ``[P]``: whether they are written as a record has them."""
        arrays: Arrays = {}
        good = np.ones(len(bodies), np.bool_)
        offset = self._offset
        for name, shape in self._shapes:
            is_packed = self._hard and name in MASKS
            dtype = np.dtype(np.uint8 if is_packed else "<f2")
            end = offset + prod(shape) * dtype.itemsize
            values = np.ascontiguousarray(bodies[:, offset:end]).view(dtype).reshape(len(bodies), *shape)
            if is_packed:
                bits = np.unpackbits(values, axis=2, bitorder="little")
                good &= everywhere(bits[:, :, self._adapters :] == 0)
                values = bits[:, :, : self._adapters]
            else:
                good &= everywhere(values.view("<u2") != NEGATIVE_ZERO)
            arrays[name] = values
            offset = end
        return arrays, good


def _sum_is_right(record: bytes) -> bool:
    (checksum,) = CHECKSUM.unpack_from(record, len(record) - CHECKSUM.size)
    return bool(zlib.crc32(memoryview(record)[: -CHECKSUM.size]) == checksum)
