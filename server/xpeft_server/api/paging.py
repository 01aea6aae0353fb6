"""Query parameters of the lists."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from .errors import ApiError

DEFAULT_LIMIT: Final = 100
MOST: Final = 1000


def asked_limit(value: str | None) -> int:
    """Raises: ApiError 422 unless it is a whole number from 1 to 1000."""
    if value is None:
        return DEFAULT_LIMIT
    if value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= MOST:
        return int(value)
    raise ApiError(
        422, "invalid_parameter", f"limit = {value[:80]!r} is no whole number from 1 to {MOST}", param="limit"
    )


def known_parameters(request: Request, *names: str) -> None:
    """Raises: ApiError 422 for a query parameter that nobody reads, or that is there twice."""
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in names:
            message = f"there is no parameter {name[:80]!r}; there are {', '.join(names)}"
            raise ApiError(422, "unknown_parameter", message, param=name[:80])
        if name in seen:
            raise ApiError(422, "invalid_parameter", f"{name} is given twice", param=name)
        seen.add(name)
