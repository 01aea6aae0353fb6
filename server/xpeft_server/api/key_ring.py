"""The keys that a running server accepts, kept in step with their file."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from .auth import Principal
from .key_file import KeysInvalid, read_keys

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 1.0


class _Known(NamedTuple):
    digest: bytes
    principal: Principal
    expires_at: float | None


class KeyRing:
    """Keys of a file, looked up by the SHA-256 of the secret.

    What a look-up's time tells is about the digest of what was sent, which tells nothing of any secret.

    Args:
        path: the file of keys; read at once.
        now: clock in unix seconds.
    Raises: KeysInvalid if the file cannot be used at the start.
    """

    required = True

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._stamp = self._look()
        self._known = self._read()

    def find(self, secret: bytes) -> Principal | None:
        digest = hashlib.sha256(secret).digest()
        known = self._known.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest):
            return None
        if known.expires_at is not None and self._now() >= known.expires_at:
            return None
        return known.principal

    def refresh(self) -> None:
        """Read the file again if it is another one than before; a broken one is logged and changes nothing."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = self._read()
        except KeysInvalid as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("read %d keys from %s", len(self._known), self._path)

    async def watch(self) -> None:
        """Refresh once a second, off the event loop, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await asyncio.to_thread(self.refresh)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> dict[bytes, _Known]:
        known: dict[bytes, _Known] = {}
        for entry in read_keys(self._path):
            digest = bytes.fromhex(entry.sha256)
            known[digest] = _Known(digest, entry.principal, entry.expires_at)
        return known
