"""How the members of the wire's unions are called in pydantic's locations; they are no part of a field's name."""

from __future__ import annotations

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
