"""Profile file (safetensors, as a stranger uploads it) to profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ProfileInvalid, shown, shown_name
from ..profile import Profile
from .header import TensorPlace, parse_json, read_file_header

FILE_FORMAT = "xpeft-profile-1"
SHARED = "shared:"

# File dtype → how its bytes are read. BOOL is read as numbers, so that a 2 in it is seen.
DTYPES = {"BOOL": "u1", "U8": "u1", "F16": "<f2", "F32": "<f4"}
# Tensor → its field in Profile and its number of dimensions, in the order of a canonical file.
TENSORS = {
    "mask_a": ("mask_a", 2),
    "mask_b": ("mask_b", 2),
    "ln_weight": ("ln_weight", 2),
    "ln_bias": ("ln_bias", 2),
    "head.weight": ("head_weight", 2),
    "head.bias": ("head_bias", 1),
}
RANKS = {name: rank for name, (_, rank) in TENSORS.items()}
ITEM_BYTES = {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
METADATA_KEYS = ("format", "bank", "labels", "head", "description")


def read_profile_file(data: bytes, *, max_bytes: int | None = None) -> Profile:
    """Read a profile file, trusting nothing in it.

    Args: ``max_bytes`` limits the whole file.
    Raises: ProfileInvalid, naming tensor and value.
    """
    if max_bytes is not None and len(data) > max_bytes:
        raise ProfileInvalid(f"has {len(data)} bytes, at most {max_bytes} are allowed", "body")
    header = read_file_header(data, RANKS, ITEM_BYTES)
    words = _words(header.metadata)
    for name in ("mask_a", "mask_b"):
        if name not in header.tensors:
            raise ProfileInvalid("the tensor is missing", name)
    arrays = {TENSORS[name][0]: _array(data, name, place) for name, place in header.tensors.items()}
    return Profile(**words, **arrays)


def _array(data: bytes, name: str, place: TensorPlace) -> Any:
    dtype = np.dtype(DTYPES[place.dtype])
    if dtype.kind == "u" and not name.startswith("mask"):
        raise ProfileInvalid(f"dtype is {place.dtype}, it must be F16 or F32", name)
    flat: NDArray[Any] = np.frombuffer(data, dtype, (place.end - place.begin) // dtype.itemsize, place.begin)
    return flat.astype(dtype.newbyteorder("=")).reshape(place.shape)


def _words(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The fields of Profile that stand in the metadata."""
    unknown = [name for name in metadata if name not in METADATA_KEYS]
    if unknown:
        raise ProfileInvalid(f"the metadata may only have {', '.join(METADATA_KEYS)}", shown_name(unknown[0]))
    if metadata.get("format") != FILE_FORMAT:
        raise ProfileInvalid(f"is {shown(metadata.get('format'))}, it must be {FILE_FORMAT!r}", "format")
    if "bank" not in metadata:
        raise ProfileInvalid("the metadata must name the bank's fingerprint", "bank")
    words: dict[str, Any] = {"bank": metadata["bank"], "description": metadata.get("description")}
    if "labels" in metadata:
        labels = parse_json(metadata["labels"], "labels")
        if not isinstance(labels, list):
            raise ProfileInvalid(f"{shown(metadata['labels'])} is not a JSON list of strings", "labels")
        words["labels"] = tuple(labels)
    if "head" in metadata:
        if not metadata["head"].startswith(SHARED):
            raise ProfileInvalid(f"is {shown(metadata['head'])}, it must be '{SHARED}NAME'", "head")
        words["shared_head"] = metadata["head"].removeprefix(SHARED)
    return words
