"""How many items a body's lists have, checked before any of them is looked at: a wire type takes time for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import ApiError

# Of a route: is given the body's JSON object, and raises ApiError if a list in it is too long.
CountsCheck = Callable[[Mapping[str, object]], None]


def length_of(value: object) -> int:
    """0 of what is no list: that is for the wire type to refuse."""
    return len(value) if isinstance(value, list) else 0


def check_count(field: str, count: int, most: int, message: str, *, code: str = "invalid_field") -> None:
    """Refuse more items than ``most``.

    Args:
        message: with places for ``{count}`` and ``{most}``.
    Raises: ApiError 422 naming the field.
    """
    if count > most:
        raise ApiError(422, code, message.format(count=count, most=most), param=field)
