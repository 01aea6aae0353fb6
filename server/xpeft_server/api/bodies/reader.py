"""Reads bodies up to a limit, whatever length they claim."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from starlette.types import Receive, Scope

from xpeft_profiles.errors import shown

from ..errors import NO_HEADERS, ApiError, ClientGone

# Bytes beyond the limit that are read and discarded, so that a client that sends everything before it reads gets its
# 413. The rest of a longer body is not read: the connection ends with the answer.
_DISCARDED: Final = 16 << 20
_CLOSE: Final = {"Connection": "close"}
# In a scope: the whole body has come, so ``receive`` does not wait.
BODY_IS_THERE: Final = "xpeft.body_is_there"


async def read_body(scope: Scope, receive: Receive, *, limit: int, media_type: bytes, seconds: float) -> bytes:
    """The request's body, of at most ``limit`` bytes; no more than that is ever held.

    Raises: ApiError 415 for another media type or an encoded body, 413 for one that is too long, 408 for one that is
        not there in time; ClientGone.
    """
    _check_headers(scope["headers"], limit=limit, media_type=media_type)
    if BODY_IS_THERE in scope:
        return await _read(receive, limit)
    try:
        async with asyncio.timeout(seconds):
            return await _read(receive, limit)
    except TimeoutError:
        raise ApiError(
            408, "request_timeout", f"the body was not there within {seconds:g} seconds", headers=_CLOSE
        ) from None


async def _read(receive: Receive, limit: int) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) <= limit:
            return body
    # Not a list of parts: in a body that comes byte by byte each part would cost forty bytes.
    held = bytearray()
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size <= limit:
            held += part
        elif size > limit + _DISCARDED:
            raise _too_large(limit, headers=_CLOSE)
        else:
            held.clear()
        if not message.get("more_body", False):
            break
        message = await receive()
    if size > limit:
        raise _too_large(limit)
    return bytes(held)


def _check_headers(headers: list[tuple[bytes, bytes]], *, limit: int, media_type: bytes) -> None:
    sent = b""
    said = 0
    asks_first = False
    for name, value in headers:
        if name == b"content-type":
            sent = value
        elif name == b"content-length":
            said = int(value[:18])
        elif name == b"expect":
            asks_first = value.lower() == b"100-continue"
        elif name == b"content-encoding" and value.lower() != b"identity":
            message = f"content-encoding {shown(value.decode('latin-1'))} is not supported; send the body as it is"
            raise ApiError(415, "unsupported_media_type", message)
    if sent != media_type and sent.partition(b";")[0].strip().lower() != media_type:
        message = f"content-type is {shown(sent.decode('latin-1'))}; send {media_type.decode()}"
        raise ApiError(415, "unsupported_media_type", message)
    if said > limit + _DISCARDED or (asks_first and said > limit):
        raise _too_large(limit, headers=_CLOSE)


def _too_large(limit: int, *, headers: Mapping[str, str] = NO_HEADERS) -> ApiError:
    return ApiError(413, "body_too_large", f"the body has more than {limit} bytes", headers=headers)
