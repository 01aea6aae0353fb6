"""How much a JSON body holds, counted before it is parsed: values take far longer to make than bytes to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..errors import ApiError

# Shorter bodies are parsed within a few milliseconds, whatever is in them.
_COUNTED_FROM: Final = 64 << 10
_MOST: Final[Mapping[str, int]] = {"lists and objects": 1 << 16, "strings": 1 << 17, "commas": 1 << 19}
_PER_ITEM: Final[Mapping[str, int]] = {"lists and objects": 2, "strings": 8, "commas": 8}


def check_json_counts(data: bytes, items: int) -> None:
    """Refuse a body that no request needs and that would keep others waiting while it is parsed.

    Nothing else runs while a body is parsed: half a second for eight MiB of empty lists, a hundredth for as much text
    (benchmarks/results/http-cpu.txt).

    Args:
        items: the most that a list of the request may have, which may need more than what is allowed to every body.
    Raises: ApiError 422.
    """
    if len(data) < _COUNTED_FROM:
        return
    for what, count in _counts(data, _most("strings", items)).items():
        most = _most(what, items)
        if count > most:
            message = f"the body has {count} {what}, more than the {most} of one request"
            raise ApiError(422, "invalid_body", message)


def _counts(data: bytes, most_strings: int) -> dict[str, int]:
    """Of what stands outside of strings nothing is counted once there are too many of those.

    Up to where a body stops being JSON the counts are right; from there on nobody reads it.
    """
    if b"\\" in data:
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")
    strings = data.count(b'"') // 2
    if strings > most_strings:
        return {"strings": strings}
    outside = b"".join(data.split(b'"')[::2])
    return {"lists and objects": outside.count(b"[") + outside.count(b"{"), "commas": outside.count(b",")}


def _most(what: str, items: int) -> int:
    return _MOST[what] + _PER_ITEM[what] * items
