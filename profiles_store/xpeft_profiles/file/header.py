"""The header of a safetensors file from a stranger: nothing is allocated or cut out before it is known to be honest.

u64 little-endian header length · JSON object · the tensors' bytes, without gaps
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import ProfileInvalid, shown, shown_name

LENGTH_BYTES = 8
# The format's own limit; what a profile may really measure is the caller's limit on the body.
HEADER_BYTES_MAX = 100_000_000
METADATA = "__metadata__"


class TensorPlace(NamedTuple):
    """One tensor in the file: ``data[begin:end]`` of the whole file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class FileHeader(NamedTuple):
    tensors: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]


def read_file_header(data: bytes, ranks: Mapping[str, int], item_bytes: Mapping[str, int]) -> FileHeader:
    """Parse and check a header.

    Args:
        ranks: the tensors that may stand in it, each with its number of dimensions.
        item_bytes: the dtypes that may stand in it, each with its size.
    Raises: ProfileInvalid, naming tensor and value.
    """
    header, begin = _parse(data)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ProfileInvalid(f"{shown(metadata)} is not an object of strings", METADATA)
    unknown = [name for name in header if name not in ranks]
    if unknown:
        raise ProfileInvalid(f"a profile has no such tensor; it has {', '.join(ranks)}", shown_name(unknown[0]))
    tensors = {}
    for name, entry in header.items():
        tensors[name] = _tensor_place(name, entry, ranks[name], item_bytes, begin, len(data))
    _check_cover(tensors, begin, len(data))
    return FileHeader(tensors, metadata)


def parse_json(text: str, param: str) -> Any:
    """Strict JSON: no key twice at any level, no NaN, no endless nesting. Raises: ProfileInvalid."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise ProfileInvalid(f"the key {shown(twice)} stands there twice", param)
        return found

    def refuse_constant(constant: str) -> Any:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        return json.loads(text, object_pairs_hook=object_of, parse_constant=refuse_constant)
    except RecursionError as error:
        raise ProfileInvalid("is nested too deeply", param) from error
    except ValueError as error:
        raise ProfileInvalid(f"{shown(text)} is not valid JSON ({error})", param) from error


def _parse(data: bytes) -> tuple[dict[str, Any], int]:
    """The header's object and where the tensors' bytes begin."""
    if len(data) < LENGTH_BYTES:
        raise ProfileInvalid(f"a body of {len(data)} bytes is not a safetensors file", "header")
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        first = shown(bytes(data[:LENGTH_BYTES]))
        raise ProfileInvalid(
            f"the file begins with {first}, where a safetensors file has the length of its header: as such it is"
            f" {length}, at most {HEADER_BYTES_MAX} are allowed",
            "header",
        )
    begin = LENGTH_BYTES + length
    if begin > len(data):
        raise ProfileInvalid(
            f"its length is said to be {length}, only {len(data) - LENGTH_BYTES} bytes follow", "header"
        )
    raw = bytes(data[LENGTH_BYTES:begin])
    if not raw.startswith(b"{"):
        raise ProfileInvalid(f"begins with {shown(raw[:8])}, it must be a JSON object", "header")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ProfileInvalid(f"is not UTF-8 at byte {error.start}", "header") from error
    header: dict[str, Any] = parse_json(text, "header")
    return header, begin


def _tensor_place(
    name: str, entry: object, rank: int, item_bytes: Mapping[str, int], begin: int, end: int
) -> TensorPlace:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ProfileInvalid(f"{shown(entry)} does not have just dtype, shape and data_offsets", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in item_bytes:
        raise ProfileInvalid(f"dtype is {shown(dtype)}, it must be one of {', '.join(item_bytes)}", name)
    if not _are_sizes(shape, rank) or 0 in shape:
        raise ProfileInvalid(f"shape is {shown(shape)}, it must be {rank} sizes, none of them zero", name)
    if not _are_sizes(offsets, 2):
        raise ProfileInvalid(f"data_offsets are {shown(offsets)}, they must be two numbers ≥ 0", name)
    if offsets[1] > end - begin:
        raise ProfileInvalid(f"data_offsets are {shown(offsets)}, there are {end - begin} bytes of tensors", name)
    if offsets[1] - offsets[0] != math.prod(shape) * item_bytes[dtype]:
        raise ProfileInvalid(
            f"data_offsets are {shown(offsets)}, which is not the size of {shown(shape)} in {dtype}", name
        )
    return TensorPlace(dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _are_sizes(value: object, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    )


def _check_cover(tensors: Mapping[str, TensorPlace], begin: int, end: int) -> None:
    """The tensors must fill the file: no overlap, no gap, nothing behind them."""
    for name, place in sorted(tensors.items(), key=lambda item: item[1].begin):
        if place.begin != begin:
            fault = "overlaps the tensor before it" if place.begin < begin else "leaves a gap before it"
            raise ProfileInvalid(f"begins at byte {place.begin} instead of {begin}: it {fault}", name)
        begin = place.end
    if begin != end:
        raise ProfileInvalid(f"{end - begin} bytes follow that belong to no tensor", "header")
