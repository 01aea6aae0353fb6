"""The compact record: what a store keeps of a profile.

    magic "XPFR" · format u8 · flags u8 · L N R H C T u32 · bank's SHA-256, 32 bytes
    T bytes of text: canonical JSON of what there is of {bank, description, head, labels}, nothing if nothing
    mask_a, mask_b    hard: ⌈N/8⌉ bytes a row, little-endian bits; soft: float16
    ln_weight, ln_bias, head.weight, head.bias    float16, where the flags say so
    CRC-32 of everything before it, u32

All numbers are little-endian, nothing is aligned. R is 0 without an LN affine, H and C without a head of its own.
The text holds the bank only if it is not of the form ``sha256:HEX``. A profile has exactly one record, and its
SHA-256 is the profile's version; the CRC finds damage without knowing the version.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAGIC = b"XPFR"
FORMAT = 1
HARD = 1
LAYER_NORM = 2
OWN_HEAD = 4
FLAGS = HARD | LAYER_NORM | OWN_HEAD

HEADER = struct.Struct("<4sBB6I32s")
CHECKSUM = struct.Struct("<I")


class RecordHeader(NamedTuple):
    """Sizes L N R H C, ``text_bytes`` T; ``bank_digest`` is zero where the text names the bank."""

    magic: bytes
    format: int
    flags: int
    blocks: int
    adapters: int
    width: int
    hidden: int
    classes: int
    text_bytes: int
    bank_digest: bytes

    @property
    def mask_row_bytes(self) -> int:
        return (self.adapters + 7) // 8 if self.flags & HARD else 2 * self.adapters

    @property
    def record_bytes(self) -> int:
        """What the whole record must measure."""
        arrays = 2 * self.blocks * self.mask_row_bytes
        arrays += 2 * 2 * self.blocks * self.width
        arrays += 2 * self.classes * (self.hidden + 1)
        return HEADER.size + self.text_bytes + arrays + CHECKSUM.size
