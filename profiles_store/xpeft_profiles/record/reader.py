"""Record to profile, trusting nothing."""

from __future__ import annotations

import json
import zlib
from typing import Any, NamedTuple

import numpy as np

from ..errors import ProfileInvalid, RecordDamaged, shown
from ..profile import Profile, record_version
from ..texts import FINGERPRINT
from .layout import CHECKSUM, FLAGS, FORMAT, HARD, HEADER, LAYER_NORM, MAGIC, OWN_HEAD, RecordHeader
from .writer import canonical_json

NEGATIVE_ZERO = 0x8000
"""The bits of float16's."""


class RecordSummary(NamedTuple):
    """What a listing shows of a record."""

    labels: tuple[str, ...] | None
    shared_head: str | None


def decode_record(data: bytes) -> Profile:
    """The profile that ``encode_record`` made ``data`` of. Raises: RecordDamaged if a byte of it has changed."""
    header = _checked_header(data)
    words = _words(header, data)
    offset = HEADER.size + header.text_bytes
    arrays: dict[str, Any] = {}
    for name, shape in array_shapes(header):
        dtype = np.dtype(np.uint8 if name.startswith("mask") and header.flags & HARD else "<f2")
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        arrays[name] = np.frombuffer(data, dtype, count, offset).reshape(shape)
        if dtype.kind == "f" and (arrays[name].view("<u2") == NEGATIVE_ZERO).any():
            raise RecordDamaged(f"{name} has a negative zero, which is not canonical")
        offset += count * dtype.itemsize
    if header.flags & HARD:
        for name in ("mask_a", "mask_b"):
            bits = np.unpackbits(arrays[name], axis=1, bitorder="little")
            if bits[:, header.adapters :].any():
                raise RecordDamaged(f"{name} has bits beyond its N={header.adapters} adapters")
            arrays[name] = bits[:, : header.adapters].view(np.bool_)
    try:
        profile = Profile(**words, **arrays)
    except ProfileInvalid as error:
        raise RecordDamaged(f"the record holds no valid profile: {error.message}") from error
    # Records are canonical: these bytes are the ones that the profile would be encoded to.
    profile.__dict__["version"] = record_version(data)
    return profile


def read_summary(data: bytes) -> RecordSummary:
    """What a listing shows, without building the profile. Raises: RecordDamaged."""
    words = _words(_checked_header(data), data)
    return RecordSummary(words["labels"], words["shared_head"])


def _checked_header(data: bytes) -> RecordHeader:
    if len(data) < HEADER.size + CHECKSUM.size:
        raise RecordDamaged(f"the record has {len(data)} bytes, too few to be one")
    header = RecordHeader(*HEADER.unpack_from(data))
    if header.magic != MAGIC:
        raise RecordDamaged(f"the record begins with {shown(header.magic)}, not with {MAGIC!r}")
    if header.format != FORMAT:
        raise RecordDamaged(f"the record has format {header.format}, this server reads format {FORMAT}")
    if header.record_bytes != len(data):
        raise RecordDamaged(f"the record has {len(data)} bytes, its header promises {header.record_bytes}")
    (checksum,) = CHECKSUM.unpack_from(data, len(data) - CHECKSUM.size)
    actual = zlib.crc32(memoryview(data)[: -CHECKSUM.size])
    if checksum != actual:
        raise RecordDamaged(f"the record's CRC-32 is {actual:08x}, it says {checksum:08x}")
    if header.flags & ~FLAGS:
        raise RecordDamaged(f"the record has flags {header.flags:#x}, this server knows {FLAGS:#x}")
    _, _, flags, _, _, width, hidden, classes, *_ = header
    if (width and not flags & LAYER_NORM) or ((hidden or classes) and not flags & OWN_HEAD):
        raise RecordDamaged(f"the record has R={width} H={hidden} C={classes} in spite of flags {flags:#x}")
    return header


def _words(header: RecordHeader, data: bytes) -> dict[str, Any]:
    text = data[HEADER.size : HEADER.size + header.text_bytes]
    try:
        words = json.loads(text) if text else {}
        canonical = not text or canonical_json(words) == text
    except (ValueError, RecursionError) as error:
        raise RecordDamaged(f"the record's text {shown(text)} is not JSON") from error
    if not canonical or not isinstance(words, dict) or not _as_written(words, header):
        raise RecordDamaged(f"the record's text {shown(text)} is not canonical")
    labels = words.pop("labels", None)
    found = {
        "bank": words.pop("bank", "sha256:" + header.bank_digest.hex()),
        "description": words.pop("description", None),
        "shared_head": words.pop("head", None),
        "labels": tuple(labels) if isinstance(labels, list) else labels,
    }
    if words:
        raise RecordDamaged(f"the record's text has unknown entries {shown(sorted(words))}")
    return found


def _as_written(words: dict[str, Any], header: RecordHeader) -> bool:
    """No text says nothing, no entry is empty, and the text has the bank only where the header cannot have it."""
    if (header.text_bytes and not words) or None in words.values():
        return False
    return "bank" not in words or not (any(header.bank_digest) or FINGERPRINT.fullmatch(str(words["bank"])))


def array_shapes(header: RecordHeader) -> list[tuple[str, tuple[int, ...]]]:
    """Of the arrays of a record with this header, in their order; a hard mask's is that of its bytes."""
    columns = header.mask_row_bytes if header.flags & HARD else header.adapters
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("mask_a", (header.blocks, columns)),
        ("mask_b", (header.blocks, columns)),
    ]
    if header.flags & LAYER_NORM:
        norm = (header.blocks, header.width)
        shapes += [("ln_weight", norm), ("ln_bias", norm)]
    if header.flags & OWN_HEAD:
        shapes += [("head_weight", (header.classes, header.hidden)), ("head_bias", (header.classes,))]
    return shapes
