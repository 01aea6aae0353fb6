"""Keys, TLS, audit log and tracing, built from the settings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from xpeft_server.api.access.auth import Keys, NoKeys
from xpeft_server.api.access.key_ring import KeyRing
from xpeft_server.api.audit.file import AuditFile
from xpeft_server.api.audit.log import AuditLog, AuditLogger
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings, SettingsInvalid

from .in_force import InForce
from .tls import ServerTls, server_tls
from .tracing import Tracing, build_tracing


@dataclass(frozen=True, slots=True)
class HttpParts:
    """What a process that speaks HTTP needs beside its application. ``tls`` and ``tracing``: None if switched off."""

    keys: Keys
    tls: ServerTls | None
    audit: AuditLog
    tracing: Tracing | None

    def watch(self) -> list[asyncio.Task[None]]:
        """Read keys and certificates again when they change, until the tasks are cancelled."""
        watched = (each for each in (self.keys, self.tls) if isinstance(each, KeyRing | ServerTls))
        return [asyncio.create_task(each.watch()) for each in watched]

    def close(self, seconds: float) -> None:
        """Close the audit log and send the spans that wait, within ``seconds``."""
        self.audit.close()
        if self.tracing is not None:
            self.tracing.close(seconds)


def build_http_parts(
    settings: Settings, environ: Mapping[str, str], metrics: Metrics, *, in_force: InForce | None = None
) -> HttpParts:
    """Raises: SettingsInvalid, KeysInvalid."""
    stands = in_force or InForce()
    return HttpParts(
        tls=server_tls(settings, in_force=stands.tls),
        audit=_audit_log(settings),
        keys=NoKeys() if settings.api_keys is None else KeyRing(settings.api_keys, in_force=stands.keys),
        tracing=build_tracing(settings, environ, metrics),
    )


def _audit_log(settings: Settings) -> AuditLog:
    """Raises: SettingsInvalid, naming the file, if it cannot be written."""
    if settings.audit_log is None:
        return AuditLog(AuditLogger())
    try:
        return AuditLog(AuditFile(settings.audit_log))
    except OSError as error:
        shown = f"audit_log = {str(settings.audit_log)!r}"
        raise SettingsInvalid(f"{shown} cannot be written: {error.strerror or error}") from None
