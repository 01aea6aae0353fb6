"""Profile to profile file."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..profile import Profile
from ..record.writer import canonical_json
from .header import LENGTH_BYTES, METADATA
from .reader import FILE_FORMAT, SHARED, TENSORS

ALIGNMENT = 8


def write_profile_file(profile: Profile) -> bytes:
    """The profile's one canonical file: reading it gives the same version again."""
    header: dict[str, Any] = {METADATA: _metadata(profile)}
    parts: list[bytes] = []
    offset = 0
    for name, (field, _) in TENSORS.items():
        array = getattr(profile, field)
        if array is None:
            continue
        dtype = "U8" if array.dtype == np.bool_ else "F16"
        raw = array.astype("u1" if dtype == "U8" else "<f2").tobytes()
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, offset + len(raw)]}
        parts.append(raw)
        offset += len(raw)
    text = canonical_json(header)
    text += b" " * (-len(text) % ALIGNMENT)
    return b"".join([len(text).to_bytes(LENGTH_BYTES, "little"), text, *parts])


def _metadata(profile: Profile) -> dict[str, str]:
    metadata = {"format": FILE_FORMAT, "bank": profile.bank}
    if profile.labels is not None:
        metadata["labels"] = canonical_json(profile.labels).decode()
    if profile.shared_head is not None:
        metadata["head"] = SHARED + profile.shared_head
    if profile.description is not None:
        metadata["description"] = profile.description
    return metadata
