"""The header of a bank's file: what safetensors says of the tensors, and a bank's own words beside them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..fingerprint import DTYPE_NAMES
from .bank import BANK_FORMAT, Bank
from .errors import BankInvalid

_LONGEST = 100_000_000  # bytes; the most that safetensors itself reads
METADATA = ("format", "plm", "activation", "layer_norm", "pooling", "heads", "provenance")
ADAPTER_TENSORS = ("down", "up", "down_bias", "up_bias")


@dataclass(frozen=True)
class BankHeader:
    """A header that was read and found to be a bank's; ``heads`` are name → labels."""

    metadata: Mapping[str, str]
    heads: Mapping[str, tuple[str, ...]]
    tensors: frozenset[str]

    def switch(self, key: str, default: bool) -> bool:
        """A metadata value that is "true" or "false". Raises: BankInvalid."""
        value = self.metadata.get(key, str(default).lower())
        if value not in ("true", "false"):
            raise BankInvalid(f"metadata {key} is {value!r}, it must be true or false")
        return value == "true"


def read_header(path: Path) -> BankHeader:
    """Read and check everything that can be told without the tensors' bytes. Raises: BankInvalid, OSError."""
    entries = _read_entries(path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BankInvalid(f"__metadata__ is {metadata!r:.80}, it must be an object of strings")
    if metadata.get("format") != BANK_FORMAT:
        raise BankInvalid(f"metadata format is {metadata.get('format')!r}, it must be {BANK_FORMAT!r}")
    for key in metadata:
        if key not in METADATA:
            raise BankInvalid(f"unknown metadata key {key!r}, a bank has {', '.join(METADATA)}")
    if "plm" not in metadata:
        raise BankInvalid("metadata plm is missing, it must be the fingerprint of the language model")
    heads = _read_heads(metadata.get("heads", "{}"))
    _check_tensors(entries, heads)
    return BankHeader(metadata, heads, frozenset(entries))


def _read_entries(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_LONGEST, path.stat().st_size - 8):
            raise BankInvalid("not a safetensors file: its first 8 bytes do not say how long a header follows")
        entries = _json(file.read(length), "the header")
    if not isinstance(entries, dict):
        raise BankInvalid("not a safetensors file: its header is not a JSON object")
    return entries


def _read_heads(text: str) -> dict[str, tuple[str, ...]]:
    heads = _json(text, "metadata heads")
    if not isinstance(heads, dict) or not all(isinstance(labels, list) for labels in heads.values()):
        raise BankInvalid(
            f'metadata heads is {text[:80]!r}, it must be a JSON object of lists, as in {{"topic": ["sport", "art"]}}'
        )
    return {name: tuple(labels) for name, labels in heads.items()}


def _check_tensors(entries: Mapping[str, Any], heads: Mapping[str, object]) -> None:
    """Refuse tensors that no bank has and missing ones; shapes are the bank's own business."""
    weights = {f"heads.{name}.weight" for name in heads}
    known = {*ADAPTER_TENSORS, *weights, *(f"heads.{name}.bias" for name in heads)}
    for name, entry in entries.items():
        if name not in known:
            hint = " (its head is not in metadata heads)" if name.startswith("heads.") else ""
            raise BankInvalid(f"unknown tensor {name!r}{hint}, this bank may have {', '.join(sorted(known))}")
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if dtype not in DTYPE_NAMES.values():
            raise BankInvalid(f"{name} has the dtype {dtype!r}, it must be {', '.join(DTYPE_NAMES.values())}")
    for name in ("down", "up", *sorted(weights)):
        if name not in entries:
            raise BankInvalid(f"tensor {name!r} is missing")


def _json(text: str | bytes, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise BankInvalid(f"{where} names {key!r} twice")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise BankInvalid(f"{where} is not JSON: {error}") from None


def format_header(bank: Bank) -> tuple[bytes, list[Tensor]]:
    """The bytes before the tensors, and the tensors in the order in which their bytes must follow.

    One bank has one form: keys sorted, wide dtypes first so that every tensor is aligned to its elements.
    """
    ordered = sorted(bank.tensors().items(), key=lambda item: (-item[1].element_size(), item[0]))
    entries: dict[str, object] = {"__metadata__": _metadata(bank)}
    offset = 0
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, [tensor for _, tensor in ordered]


def _metadata(bank: Bank) -> dict[str, str]:
    metadata = {
        "activation": bank.activation,
        "format": BANK_FORMAT,
        "layer_norm": str(bank.layer_norm).lower(),
        "plm": bank.plm,
    }
    if bank.heads:
        metadata["heads"] = json.dumps({name: list(head.labels) for name, head in bank.heads.items()})
    if not bank.pooling_by_default:
        metadata["pooling"] = bank.pooling
    if bank.provenance:
        metadata["provenance"] = bank.provenance
    return dict(sorted(metadata.items()))
