"""The file of API keys: ``{"keys": [{"id", "tenant", "role", "sha256", "expires"}]}``."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from .auth import Principal, Role

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_FIELDS: Final = frozenset({"id", "tenant", "role", "sha256", "expires"})


class KeysInvalid(Exception):
    """The file of keys cannot be used; the message names the file, the entry and the field."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key, without its secret.

    ``tenant`` may be None for an operator, who sees no tenant's data; ``expires`` is ISO 8601 with its zone.
    """

    id: str
    tenant: str | None
    role: Role
    sha256: str
    expires: str | None = None

    def __post_init__(self) -> None:
        _check_name(self.id, f"id {self.id!r}")
        if self.tenant is None and self.role is not Role.OPERATOR:
            raise KeysInvalid(f"key {self.id}: role {self.role} needs a tenant")
        if self.tenant is not None:
            _check_name(self.tenant, f"key {self.id}: tenant {self.tenant!r}")
        if _SHA256.fullmatch(self.sha256) is None:
            raise KeysInvalid(f"key {self.id}: sha256 is not 64 lower-case hexadecimal digits")
        _ = self.expires_at

    @property
    def expires_at(self) -> float | None:
        """Unix seconds."""
        if self.expires is None:
            return None
        try:
            moment = datetime.fromisoformat(self.expires)
        except ValueError:
            raise KeysInvalid(f"key {self.id}: expires {self.expires!r} is no ISO 8601 time") from None
        if moment.tzinfo is None:
            raise KeysInvalid(f"key {self.id}: expires {self.expires!r} has no time zone; add Z for UTC")
        return moment.timestamp()

    @property
    def principal(self) -> Principal:
        tenant = "" if self.role is Role.OPERATOR else self.tenant or ""
        return Principal(tenant, frozenset({self.role}), self.id)


def new_key(*, id: str, tenant: str | None, role: Role, expires: str | None) -> tuple[str, KeyEntry]:  # noqa: A002
    """A fresh secret, to be shown once, and the entry that recognises it."""
    secret = "xp_" + secrets.token_urlsafe(32)
    return secret, KeyEntry(id, tenant, role, hashlib.sha256(secret.encode()).hexdigest(), expires)


def parse_keys(data: bytes) -> tuple[KeyEntry, ...]:
    """Raises: KeysInvalid, naming the entry and the field."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise KeysInvalid(f"not JSON: {error}") from None
    except RecursionError:
        raise KeysInvalid("its JSON is nested too deeply") from None
    if not isinstance(document, dict) or document.keys() != {"keys"} or not isinstance(document["keys"], list):
        raise KeysInvalid('not of the form {"keys": […]}')
    entries = tuple(_parse_entry(position, item) for position, item in enumerate(document["keys"]))
    for field in ("id", "sha256"):
        value, times = next(iter(Counter(getattr(entry, field) for entry in entries).most_common(1)), ("", 0))
        if times > 1:
            raise KeysInvalid(f"{times} keys have the {field} {value!r}")
    return entries


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """Raises: KeysInvalid if the file is missing, unreadable or broken."""
    try:
        return parse_keys(path.read_bytes())
    except OSError as error:
        raise KeysInvalid(f"{path}: {error.strerror or error}") from None
    except KeysInvalid as error:
        raise KeysInvalid(f"{path}: {error}") from None


def write_keys(path: Path, entries: Sequence[KeyEntry]) -> None:
    """Replace the file at once: a reader sees the old keys or the new, never half of them.

    What ``path`` leads to is replaced, and stays whose it is, with its mode; a new file has mode 0600.

    Raises: KeysInvalid, with nothing written, if the file's owner cannot be kept; OSError.
    """
    document = json.dumps({"keys": [asdict(entry) for entry in entries]}, indent=2) + "\n"
    path = Path(os.path.realpath(path))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            _keep_owner(path, file.fileno())
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _keep_owner(path: Path, handle: int) -> None:
    """Give the open file owner, group and mode of the one at ``path``, if there is one.

    Raises: KeysInvalid if that is refused; OSError.
    """
    try:
        there = path.stat()
    except FileNotFoundError:
        return
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (there.st_uid, there.st_gid):
        try:
            os.fchown(handle, there.st_uid, there.st_gid)
        except OSError as error:
            owner = f"user {there.st_uid} and group {there.st_gid}"
            reason = f"it belongs to {owner}, and user {new.st_uid} cannot give a new file to them"
            raise KeysInvalid(f"{path} cannot be replaced: {reason}: {error.strerror}") from None
    os.fchmod(handle, stat.S_IMODE(there.st_mode))


def _parse_entry(position: int, item: object) -> KeyEntry:
    where = f"keys[{position}]"
    if not isinstance(item, dict):
        raise KeysInvalid(f"{where} is not an object")
    if unknown := item.keys() - _FIELDS:
        raise KeysInvalid(f"{where} has the unknown field {min(unknown)!r}")
    if missing := {"id", "role", "sha256"} - item.keys():
        raise KeysInvalid(f"{where} lacks {min(missing)!r}")
    for field, value in item.items():
        if not isinstance(value, str) and not (value is None and field in ("tenant", "expires")):
            raise KeysInvalid(f"{where}: {field} is not a text: {value!r}")
    try:
        role = Role(item["role"])
    except ValueError:
        raise KeysInvalid(f"{where}: role {item['role']!r} is none of {', '.join(Role)}") from None
    return KeyEntry(item["id"], item.get("tenant"), role, item["sha256"], item.get("expires"))


def _check_name(name: str, shown: str) -> None:
    from xpeft_profiles.names import NAME_PATTERN, NAME_RULE

    if NAME_PATTERN.fullmatch(name) is None:
        raise KeysInvalid(f"{shown} is not a name ({NAME_RULE})")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder that the key file is in, so that two commands do not lose each other's changes."""
    folder = os.open(Path(os.path.realpath(path)).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
