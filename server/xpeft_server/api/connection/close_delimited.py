"""Answers of unknown length to HTTP/1.0 clients, which know no chunks: the end of the connection ends them."""

from __future__ import annotations

import sys
from typing import Any

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def close_delimited(cycle: RequestResponseCycle) -> Send:
    """Its ``send``, for a connection that closes after the answer. Source: RFC 9112, 6.1 and 6.3."""
    send: Any = cycle.send
    is_told = True

    async def send_unchunked(message: Message) -> None:
        nonlocal is_told
        if message["type"] == "http.response.start":
            is_told = any(name == b"content-length" for name, _ in message["headers"])
            if not is_told:
                cycle.chunked_encoding = False
                cycle.expected_content_length = sys.maxsize
        elif not is_told and not message.get("more_body", False):
            cycle.expected_content_length = len(message["body"])
        await send(message)

    return send_unchunked
