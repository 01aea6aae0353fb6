"""Whether an ``Accept`` header prefers another representation to JSON (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from typing import Final

_FILE: Final = ("application/octet-stream", "application/*", "*/*")
_EVENTS: Final = ("text/event-stream", "text/*", "*/*")
_JSON: Final = ("application/json", "application/*", "*/*")


def prefers_file(accept: str | None) -> bool:
    """Whether ``application/octet-stream`` is wanted more than JSON, which is the default."""
    return _prefers(accept, _FILE)


def prefers_events(accept: str | None) -> bool:
    """Whether ``text/event-stream`` is wanted more than JSON, which is the default."""
    return _prefers(accept, _EVENTS)


def _prefers(accept: str | None, ranges: tuple[str, ...]) -> bool:
    if not accept:
        return False
    wanted = dict(_media_range(item) for item in accept.lower().split(","))
    return _quality(wanted, ranges) > _quality(wanted, _JSON) or (
        ranges[0] in wanted and _JSON[0] not in wanted and wanted[ranges[0]] > 0
    )


def _media_range(item: str) -> tuple[str, float]:
    media_type, *parameters = (part.strip() for part in item.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return media_type, float(parameter[2:])
            except ValueError:
                return media_type, 0.0
    return media_type, 1.0


def _quality(wanted: dict[str, float], ranges: tuple[str, ...]) -> float:
    return next((wanted[name] for name in ranges if name in wanted), 0.0)
