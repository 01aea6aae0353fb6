"""Builds the audit log from the settings."""

from __future__ import annotations

from xpeft_server.api.audit.file import AuditFile
from xpeft_server.api.audit.log import AuditLog, AuditLogger
from xpeft_server.settings import Settings, SettingsInvalid


def build_audit(settings: Settings) -> AuditLog:
    """Raises: SettingsInvalid, naming the file, if it cannot be written."""
    if settings.audit_log is None:
        return AuditLog(AuditLogger())
    try:
        return AuditLog(AuditFile(settings.audit_log))
    except OSError as error:
        shown = f"audit_log = {str(settings.audit_log)!r}"
        raise SettingsInvalid(f"{shown} cannot be written: {error.strerror or error}") from None
