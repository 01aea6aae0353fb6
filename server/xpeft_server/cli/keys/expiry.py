"""When a key expires: as it is asked for, and whether that has come."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Final

from xpeft_server.api.access.key_file import KeyEntry

from ..screen import fail

_AGES: Final = {"d": "days", "h": "hours", "m": "minutes"}
_FORMS: Final = "an age such as 90d, 12h or 30m, or an ISO 8601 time with its zone such as 2030-01-31T12:00Z"


def expiry_of(expires: str | None) -> str | None:
    """An age becomes the time that it stands for; a time stays as it is. Ends the command unless it is to come."""
    if expires is None:
        return None
    age = age_of(expires)
    moment = _time(expires) if age is None else datetime.now(UTC) + age
    if moment.timestamp() <= time.time():
        fail(f"expires = {expires!r} is not in the future: the key would never open anything")
    return expires if age is None else moment.isoformat(timespec="seconds")


def age_of(text: str) -> timedelta | None:
    """None if it is not like 7d, 24h or 30m."""
    age = re.fullmatch(r"([0-9]{1,6})([dhm])", text)
    return timedelta(**{_AGES[age[2]]: int(age[1])}) if age else None


def has_expired(entry: KeyEntry) -> bool:
    return entry.expires_at is not None and entry.expires_at <= time.time()


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fail(f"expires = {text!r} is not {_FORMS}")
    if moment.tzinfo is None:
        fail(f"expires = {text!r} has no time zone: give {_FORMS}")
    return moment
