"""Conditional requests: If-Match and If-None-Match, and the entity tags in them (RFC 9110, section 13)."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import Scope

from xpeft_profiles import Match

from .errors import ApiError

ANY: Final = "*"
# Commas before a tag are those of empty elements, which a list may have (section 5.6.1.2).
_TAG: Final = re.compile(rb'[ \t,]*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"[ \t]*')


def etag(version: str) -> tuple[bytes, bytes]:
    """The header that names a profile's version."""
    return b"etag", b'"%s"' % version.encode()


def match_of(scope: Scope) -> Match:
    """The precondition of a write.

    If-Match compares strongly, so a weak tag in it matches nothing; If-None-Match compares weakly.
    Raises: ApiError 400 for a header that is no list of entity tags.
    """
    return Match(
        if_match=_versions(scope, b"if-match", strong=True),
        if_none_match=_versions(scope, b"if-none-match", strong=False),
    )


def is_known(scope: Scope, version: str) -> bool:
    """Whether the caller of a read has this version already: the answer is then 304."""
    known = _versions(scope, b"if-none-match", strong=False)
    return known is not None and (ANY in known or version in known)


def _versions(scope: Scope, name: bytes, *, strong: bool) -> tuple[str, ...] | None:
    """The header's versions, or ``(ANY,)`` for an unquoted star; None without the header."""
    lines = [value for header, value in scope["headers"] if header == name]
    if not lines:
        return None
    value = b",".join(lines)
    if value.strip() == ANY.encode():
        return (ANY,)
    tags = value.strip(b" \t,")
    versions: list[str] = []
    position = 0
    while True:
        tag = _TAG.match(tags, position)
        if tag is None:
            raise _malformed(name, value)
        # A star in quotes is a tag like others; no version is called so, and to Match it would be any version.
        if not (strong and tag[1]) and tag[2] != ANY.encode():
            versions.append(tag[2].decode("latin-1"))
        position = tag.end()
        if position == len(tags):
            return tuple(versions)
        if tags[position : position + 1] != b",":
            raise _malformed(name, value)


def _malformed(name: bytes, value: bytes) -> ApiError:
    shown = value[:80].decode("latin-1")
    message = f'{name.decode()} is {shown!r}; send * or versions in double quotes: "sha256:…"'
    return ApiError(400, "invalid_header", message, param=name.decode())
