"""What the profiles of many people are called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from xpeft_profiles import ProfileInvalid, check_new_name

_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")
_NAMED: Final = 3  # so many bad values are told, and how many more there are


class NamesInvalid(Exception):
    """Values that give no names; the message is for people."""


def profile_names(values: Iterable[str], *, field: str, template: str) -> dict[str, str]:
    """Value → name: ``template`` with the value where it says ``{field}``, and ``-`` for what no name may have in it.

    Raises: NamesInvalid, naming values that give no name, or two that give the same.
    """
    place = f"{{{field}}}"
    if place not in template:
        raise NamesInvalid(f"profile is {template!r}, it must have {place} in it, in whose place the {field} comes")
    names = {value: template.replace(place, _NOT_IN_A_NAME.sub("-", value)) for value in values}
    wrong = [f"{field} {value!r}: {reason}" for value, name in names.items() if (reason := _why_not(name))]
    if wrong:
        more = f" (and {len(wrong) - _NAMED} more)" if len(wrong) > _NAMED else ""
        raise NamesInvalid("; ".join(wrong[:_NAMED]) + more)
    owners: dict[str, str] = {}
    for value, name in names.items():
        if owners.setdefault(name, value) != value:
            raise NamesInvalid(f"{field} {owners[name]!r} and {field} {value!r} would both be profile {name}")
    return names


def check_profile_name(name: str) -> None:
    """Raises: NamesInvalid unless a server takes a profile of this name."""
    if reason := _why_not(name):
        raise NamesInvalid(reason)


def _why_not(name: str) -> str | None:
    try:
        check_new_name(name)
    except ProfileInvalid as error:
        return error.message
    return None
