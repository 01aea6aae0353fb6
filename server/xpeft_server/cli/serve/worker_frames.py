"""Frames between a server and its tuning worker over two pipes: a JSON object followed by plain bytes."""

from __future__ import annotations

import asyncio
import struct
from typing import IO, Any, Final, NamedTuple

import orjson

_LENGTHS: Final = struct.Struct("<II")  # bytes of the JSON, bytes of what follows it


class Frame(NamedTuple):
    message: dict[str, Any]
    attached: bytes = b""


def encode_frame(frame: Frame) -> bytes:
    message = orjson.dumps(frame.message)
    return b"".join((_LENGTHS.pack(len(message), len(frame.attached)), message, frame.attached))


async def receive_frame(reader: asyncio.StreamReader) -> Frame:
    """Raises: asyncio.IncompleteReadError if the other side is gone."""
    message, attached = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    return Frame(orjson.loads(await reader.readexactly(message)), await reader.readexactly(attached))


def read_frame(file: IO[bytes]) -> Frame | None:
    """None if the other side is gone."""
    lengths = file.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    message, attached = _LENGTHS.unpack(lengths)
    body = file.read(message + attached)
    return Frame(orjson.loads(body[:message]), body[message:]) if len(body) == message + attached else None
