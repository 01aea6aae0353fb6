"""The one encoding under every fingerprint: a JSON line that says what follows, then the tensors' bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from xpeft_profiles.texts import FINGERPRINT

DTYPE_NAMES: dict[torch.dtype, str] = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""The float types that are hashed and stored, under the names that safetensors gives them."""


def fingerprint(header: Mapping[str, object], tensors: Iterable[Tensor]) -> str:
    """Hash a description and the tensors that it describes.

    Semantics: "sha256:" + hex(SHA-256(json(header) + "\\n" + bytes(tensors[0]) + bytes(tensors[1]) + …))

    Args:
        header: names, dtypes and shapes of the tensors (so that no two contents share one encoding) and
            whatever else counts. Written as ASCII JSON with sorted keys and without spaces:
            ``json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True)``.
        tensors: in the order of the header, each as its elements in row-major order, little-endian.
    """
    digest = hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode("ascii"))
    digest.update(b"\n")
    for tensor in tensors:
        digest.update(tensor_bytes(tensor))
    return f"sha256:{digest.hexdigest()}"


def is_fingerprint(text: str) -> bool:
    """Whether ``text`` is ``sha256:`` and 64 lower-case hexadecimal digits."""
    return FINGERPRINT.fullmatch(text) is not None


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order, as they lie in a little-endian memory; no copy if it can be had."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
