"""What profiles are called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from .errors import ProfileInvalid, shown

RESERVED: Final = "base"
"""Asks a server for the bare model, by intent; no profile can be called so."""
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NAME_RULE: Final = "a letter or digit, then up to 127 of A-Z a-z 0-9 . _ -"


class ProfileKey(NamedTuple):
    """A profile's address: names are private to their tenant."""

    tenant: str
    name: str


def check_keys(keys: Iterable[ProfileKey]) -> None:
    """Raises: ProfileInvalid, naming the first tenant or name that is none."""
    is_name = NAME_PATTERN.fullmatch
    tenants: set[str] = set()
    for tenant, name in keys:
        if tenant not in tenants:
            check_name(tenant, param="tenant")
            tenants.add(tenant)
        if is_name(name) is None:
            check_name(name)


def check_name(name: str, *, param: str = "name") -> None:
    """Raises: ProfileInvalid unless it is a letter or digit and then up to 127 of them, ``.``, ``_``, ``-``."""
    if NAME_PATTERN.fullmatch(name) is None:
        raise ProfileInvalid(f"{shown(name)} is not a name ({NAME_RULE})", param)


def check_new_name(name: str) -> None:
    """Raises: ProfileInvalid for what is no name, and for the one that no profile can have."""
    check_name(name)
    if name == RESERVED:
        raise ProfileInvalid(f"{RESERVED!r} stands for the bare model, no profile can have it", "name")
