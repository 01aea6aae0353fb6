"""Where in a profile file its values lie, and how they become records, for many files of one header."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .file_header import read_file_header
from .file_reader import DTYPES, ITEM_BYTES, RANKS
from .halves import FLOAT16_MAX, as_halves
from .masks import SUM_TOLERANCE
from .record_layout import CHECKSUM, HEADER, RecordHeader

MASKS = ("mask_a", "mask_b")
# Each pair is there whole in a record: what a file leaves out of it has these values.
PAIRS = (("ln_weight", "ln_bias"), ("head.weight", "head.bias"))
LEFT_OUT = {"ln_weight": 1.0, "ln_bias": 0.0, "head.bias": 0.0}

Arrays = dict[str, NDArray[Any]]


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
            for are_good in (_are_in_range, _are_masks):
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
            return _bytes_of(as_halves(arrays[name]))
        return _bytes_of(np.full((count, self._left_out[name]), LEFT_OUT[name], np.float16))


def _are_in_range(arrays: Arrays) -> NDArray[np.bool_]:
    """``[P]``: whether float16 can hold all numbers, NaN not among them."""
    good = np.ones(len(arrays["mask_a"]), np.bool_)
    for array in arrays.values():
        if array.dtype.kind == "f":
            good &= _everywhere(np.abs(array) <= FLOAT16_MAX)
    return good


def _are_masks(arrays: Arrays) -> NDArray[np.bool_]:
    """``[P]``"""
    a, b = (arrays[name] for name in MASKS)
    if a.dtype.kind == "u":
        counts = np.stack([np.count_nonzero(mask, axis=2) for mask in (a, b)], axis=1)
        k = counts[:, :1, :1]
        return _everywhere(a <= 1) & _everywhere(b <= 1) & _everywhere(counts == k) & (counts[:, 0, 0] > 0)
    return _are_soft(a) & _are_soft(b)


def _are_soft(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether rows sum to 1 within half of what is allowed: about what lies at the edge the exact rule decides."""
    sums = mask.sum(axis=2, dtype=np.float64)
    near = np.abs(sums - 1.0) <= SUM_TOLERANCE / 2
    return _everywhere(mask >= 0) & _everywhere(near) & _everywhere(as_halves(mask).any(axis=2))


def _everywhere(true: Any) -> NDArray[np.bool_]:
    """``[P, …] → [P]``"""
    every: NDArray[np.bool_] = true.reshape(len(true), -1).all(axis=1)
    return every


def _packed_mask(mask: NDArray[Any]) -> NDArray[np.uint8]:
    if mask.dtype.kind == "u":
        return _bytes_of(np.packbits(mask, axis=2, bitorder="little"))
    return _bytes_of(as_halves(mask))


def _bytes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    """``[P, …] → [P, bytes]``, little-endian."""
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
    return little.reshape(len(values), -1).view(np.uint8)
