"""Where in a profile file its values lie, and how they become records, for many files of one header."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..halves import as_halves
from ..record.layout import CHECKSUM, HEADER, RecordHeader
from ..stacked_arrays import MASKS, Arrays, are_in_range, are_masks, bytes_of
from .header import read_file_header
from .reader import DTYPES, ITEM_BYTES, RANKS

# Each pair is there whole in a record: what a file leaves out of it has these values.
PAIRS = (("ln_weight", "ln_bias"), ("head.weight", "head.bias"))
LEFT_OUT = {"ln_weight": 1.0, "ln_bias": 0.0, "head.bias": 0.0}


class FileLayout:
    """What follows from the header of a valid file.

    Args: file: a profile file that was read without a fault; record: its record.
    """

    def __init__(self, file: bytes, record: bytes) -> None:
        self._places = read_file_header(file, RANKS, ITEM_BYTES).tensors
        header = RecordHeader(*HEADER.unpack_from(record))
        self._begin = record[: HEADER.size + header.text_bytes]
        self._left_out = {
            "ln_weight": header.blocks * header.width,
            "ln_bias": header.blocks * header.width,
            "head.bias": header.classes,
        }

    def records(self, files: Sequence[bytes]) -> list[bytes | None]:
        """Args: files with the very header and length of the first one.

        Returns: their records; None for a file whose values are not, or not certainly, those of a valid profile.
        """
        bodies = np.frombuffer(b"".join(files), np.uint8).reshape(len(files), -1)
        arrays = {name: self._array(name, bodies) for name in self._places}
        kept = np.arange(len(files))
        with np.errstate(invalid="ignore"):
            for are_good in (are_in_range, are_masks):
                good = are_good(arrays)
                if not good.all():
                    kept, arrays = kept[good], {name: array[good] for name, array in arrays.items()}
                if not kept.size:
                    return [None] * len(files)
        records: list[bytes | None] = [None] * len(files)
        for place, record in zip(kept.tolist(), self._packed(arrays, len(kept)), strict=True):
            records[place] = record
        return records

    def _array(self, name: str, bodies: NDArray[np.uint8]) -> NDArray[Any]:
        """``[P, values]``"""
        place = self._places[name]
        values = np.ascontiguousarray(bodies[:, place.begin : place.end]).view(DTYPES[place.dtype])
        return values.reshape(len(bodies), *place.shape)

    def _packed(self, arrays: Arrays, count: int) -> Iterator[bytes]:
        """Args: arrays: of good files, ``count`` of them."""
        begin = np.frombuffer(self._begin, np.uint8)
        parts = [np.broadcast_to(begin, (count, len(begin)))]
        parts += [_packed_mask(arrays[name]) for name in MASKS]
        for pair in PAIRS:
            if any(name in arrays for name in pair):
                parts += [self._packed_numbers(arrays, name, count) for name in pair]
        rows = np.concatenate(parts, axis=1)
        size, everything = rows.shape[1], rows.tobytes()
        for start in range(0, len(everything), size):
            body = everything[start : start + size]
            yield body + CHECKSUM.pack(zlib.crc32(body))

    def _packed_numbers(self, arrays: Arrays, name: str, count: int) -> NDArray[np.uint8]:
        if name in arrays:
            return bytes_of(as_halves(arrays[name]))
        return bytes_of(np.full((count, self._left_out[name]), LEFT_OUT[name], np.float16))


def _packed_mask(mask: NDArray[Any]) -> NDArray[np.uint8]:
    if mask.dtype.kind == "u":
        return bytes_of(np.packbits(mask, axis=2, bitorder="little"))
    return bytes_of(as_halves(mask))
