"""Ids of keys, and which key they say succeeds which."""

from __future__ import annotations

import re
from typing import Final

from xpeft_server.api.access.key_file import KeyEntry

from .expiry import has_expired

_STEM: Final = 120  # characters of an id before its number; an id has 128 at most


def stem_of(key_id: str) -> str:
    """Without its number, which successors count up."""
    return re.sub(r"-\d+$", "", key_id)[:_STEM]


def free_id(stem: str, entries: tuple[KeyEntry, ...]) -> str:
    stem = stem[:_STEM]
    taken = {entry.id for entry in entries}
    number = 1
    while f"{stem}-{number}" in taken:
        number += 1
    return f"{stem}-{number}"


def live_successor(old: KeyEntry, entries: tuple[KeyEntry, ...]) -> KeyEntry | None:
    """The newest live key that a rotation of ``old`` can have made; the file does not say who succeeds whom."""
    if old.expires is None:
        return None
    later = entries[entries.index(old) + 1 :]
    alike = (stem_of(old.id), old.tenant, old.role)
    return next(
        (
            each
            for each in reversed(later)
            if (stem_of(each.id), each.tenant, each.role) == alike and not has_expired(each)
        ),
        None,
    )
