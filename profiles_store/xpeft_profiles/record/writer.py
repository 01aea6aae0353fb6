"""Profile to record."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING

import numpy as np

from ..texts import FINGERPRINT
from .layout import CHECKSUM, FORMAT, HARD, HEADER, LAYER_NORM, MAGIC, OWN_HEAD, RecordHeader

if TYPE_CHECKING:
    from ..profile import Profile


def encode_record(profile: Profile) -> bytes:
    """The profile's one canonical record; its SHA-256 is the profile's version."""
    mask_a, mask_b = profile.mask_a, profile.mask_b
    flags = 0
    if profile.hard:
        flags |= HARD
        mask_a, mask_b = (np.packbits(mask, axis=1, bitorder="little") for mask in (mask_a, mask_b))
    arrays = [mask_a, mask_b]
    blocks, adapters = profile.mask_a.shape
    width = hidden = classes = 0
    if profile.ln_weight is not None and profile.ln_bias is not None:
        flags |= LAYER_NORM
        width = profile.ln_weight.shape[1]
        arrays += [profile.ln_weight, profile.ln_bias]
    if profile.head_weight is not None and profile.head_bias is not None:
        flags |= OWN_HEAD
        classes, hidden = profile.head_weight.shape
        arrays += [profile.head_weight, profile.head_bias]
    text = _text(profile)
    digest = bytes.fromhex(profile.bank[7:]) if FINGERPRINT.fullmatch(profile.bank) else bytes(32)
    header = RecordHeader(MAGIC, FORMAT, flags, blocks, adapters, width, hidden, classes, len(text), digest)
    parts = [HEADER.pack(*header), text]
    parts += [_little_endian(array) for array in arrays]
    body = b"".join(parts)
    return body + CHECKSUM.pack(zlib.crc32(body))


def canonical_json(value: object) -> bytes:
    """Sorted keys, no blanks, UTF-8."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _text(profile: Profile) -> bytes:
    words = {
        "bank": None if FINGERPRINT.fullmatch(profile.bank) else profile.bank,
        "description": profile.description,
        "head": profile.shared_head,
        "labels": profile.labels,
    }
    there = {name: value for name, value in words.items() if value is not None}
    return canonical_json(there) if there else b""


def _little_endian(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
