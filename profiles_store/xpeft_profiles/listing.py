"""Pages of names: the cursor and the lines."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from .errors import CursorInvalid, RecordDamaged, shown
from .record.reader import read_summary
from .store import ListPage, ProfileListing, StoredProfile

PAGE_BYTES: Final = 16 << 20
"""Of the records that a page reads: it ends early behind the one that reaches it, and the cursor goes on from there."""


def encode_cursor(last_name: str) -> str:
    """Opaque to clients: base64url of the page's last name."""
    return base64.urlsafe_b64encode(last_name.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str:
    """The name after which the page begins, "" for the first. Raises: CursorInvalid.

    It may be one that no profile can have: a store also lists what another program has put into it.
    """
    if cursor is None:
        return ""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        name = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise CursorInvalid(f"cursor: {shown(cursor)} is not a cursor of this server") from error
    if not name or encode_cursor(name) != cursor:
        raise CursorInvalid(f"cursor: {shown(cursor)} is not a cursor of this server")
    return name


def check_limit(limit: int) -> None:
    if limit < 1:
        raise ValueError(f"limit: {limit} is less than 1")


def page_of(found: Iterable[tuple[str, StoredProfile]], limit: int) -> ListPage:
    """A page from up to ``limit + 1`` profiles in order; the one too many only says that there is another page."""
    lines: list[ProfileListing] = []
    size = 0
    for name, stored in found:
        if len(lines) == limit or size >= PAGE_BYTES:
            return ListPage(tuple(lines), encode_cursor(lines[-1].name))
        lines.append(listing_of(name, stored))
        size += lines[-1].bytes
    return ListPage(tuple(lines), None)


def listing_of(name: str, stored: StoredProfile) -> ProfileListing:
    """The line of a stored profile; a damaged one stays in the list, so that it can be found and replaced."""
    labels = shared_head = None
    with suppress(RecordDamaged):
        labels, shared_head = read_summary(stored.record)
    size = len(stored.record)
    return ProfileListing(name, stored.version, labels, shared_head, size, stored.created, stored.updated)
