"""What a source of profiles is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from ..errors import ProfileInvalid, shown

SUFFIX: Final = ".safetensors"


class Entry(NamedTuple):
    """A profile file, not yet checked, under the name that its source gives it. ``where``: for people."""

    where: str
    tenant: str | None
    name: str
    file: bytes


class Refusal(NamedTuple):
    """An entry that is not imported, or a profile that is not exported, and why."""

    where: str
    name: str | None
    error: str


class Source(Protocol):
    """Used by one thread at a time."""

    @property
    def bytes_total(self) -> int | None:
        """How much there is to read, where that is known."""

    @property
    def bytes_read(self) -> int: ...

    def entries(self) -> Iterator[Entry | Refusal]:
        """One after the other; no more than one of them is in memory. Raises: SourceInvalid, where it cannot go on."""

    def close(self) -> None: ...


def path_of(tenant: str | None, name: str) -> str:
    """Of a profile's file in a folder or an archive."""
    return f"{name}{SUFFIX}" if tenant is None else f"{tenant}/{name}{SUFFIX}"


def is_hidden(path: str) -> bool:
    """Whether a part of it begins with a dot, which no profile's or tenant's name does."""
    return any(part.startswith(".") for part in path.split("/") if part not in (".", ".."))


def address_of(path: str) -> tuple[str | None, str]:
    """Tenant and name of such a path; whether they are names is not looked at. Raises: ProfileInvalid."""
    parts = path.split("/")
    if parts[0] == ".":
        del parts[0]
    if not path or path.startswith("/") or ".." in parts:
        raise ProfileInvalid(f"{shown(path)} does not lie below the source", "path")
    if len(parts) > 2:
        raise ProfileInvalid(f"{shown(path)} lies too deep, it must be NAME{SUFFIX} or TENANT/NAME{SUFFIX}", "path")
    if not parts or not parts[-1].endswith(SUFFIX):
        raise ProfileInvalid(f"{shown(path)} is no profile file, its name does not end in {SUFFIX}", "path")
    return (parts[0] if len(parts) == 2 else None), parts[-1].removesuffix(SUFFIX)
