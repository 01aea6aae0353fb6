"""The names of union members in pydantic's locations, which are no part of a field's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

TEXT: Final = ":text"
TEXTS: Final = ":texts"
PAIRS: Final = ":pairs"
PARTS: Final = ":parts"
NUMBER: Final = ":number"
TOKENS: Final = ":tokens"
LISTS: Final = ":lists"
LABELLED: Final = ":labelled"
COMPLETED: Final = ":completed"
UNION_TAGS: Final = frozenset({TEXT, TEXTS, PAIRS, PARTS, NUMBER, TOKENS, LISTS, LABELLED, COMPLETED})


def text_or(tag: str) -> Callable[[object], str | None]:
    """Discriminates a text from a list whose tag is ``tag``."""

    def kind(value: object) -> str | None:
        if isinstance(value, str):
            return TEXT
        return tag if isinstance(value, list) else None

    return kind
