"""The keys that a running server accepts, kept in step with their file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from xpeft_server.watched_file import WatchedFile

from .auth import Principal
from .key_file import KeysInvalid, read_keys


class KnownKey(NamedTuple):
    principal: Principal
    expires_at: float | None


KnownKeys = Mapping[bytes, KnownKey]
"""By the SHA-256 of the secret."""


class KeyRing:
    """Keys of a file, looked up by the SHA-256 of the secret.

    What a look-up's time tells is about the digest of what was sent, which tells nothing of any secret.

    Args:
        path: the file of keys; read at once.
        now: clock in unix seconds.
        in_force: the keys that count where the file cannot be used at the start, until it can.
    Raises: KeysInvalid if the file cannot be used at the start, and nothing is in force.
    """

    required = True

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time, in_force: KnownKeys | None = None) -> None:
        self._now = now
        self.file = WatchedFile(path, read=_known_keys, invalid=KeysInvalid, content="keys", in_force=in_force)

    def find(self, secret: bytes) -> Principal | None:
        known = self.file.value.get(hashlib.sha256(secret).digest())
        if known is None:
            return None
        if known.expires_at is not None and self._now() >= known.expires_at:
            return None
        return known.principal

    async def watch(self) -> None:
        """Keep in step with the file until cancelled."""
        await self.file.watch()


def _known_keys(path: Path) -> KnownKeys:
    return {bytes.fromhex(entry.sha256): KnownKey(entry.principal, entry.expires_at) for entry in read_keys(path)}
