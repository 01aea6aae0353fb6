"""Options that are lists of whole numbers."""

from __future__ import annotations


class NumbersInvalid(ValueError):
    """A list of whole numbers cannot be read; the message names option and value."""


def parse_whole_numbers(option: str, text: str, *, most: int) -> tuple[int, ...]:
    """Comma-separated, from 1 to ``most``, each once. Raises: NumbersInvalid."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and 1 <= int(part) <= most):
            raise NumbersInvalid(f"{option} {text!r}: {part!r} is not a whole number from 1 to {most}")
    found = tuple(map(int, parts))
    if len(set(found)) < len(found):
        raise NumbersInvalid(f"{option} {text!r} names a number twice")
    return found
