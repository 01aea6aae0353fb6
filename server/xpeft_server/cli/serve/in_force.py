"""The keys, limits and certificates of a running server, for a process that starts while their files are unusable."""

from __future__ import annotations

from typing import NamedTuple

from xpeft_server.api.access.auth import Keys
from xpeft_server.api.access.key_ring import KeyRing, KnownKeys
from xpeft_server.tenant_limits import LimitsFile, LimitsOfTenants, TenantTable

from .tls import PemContents, ServerTls


class InForce(NamedTuple):
    """What the files said when they could last be used; None where there is no file."""

    keys: KnownKeys | None = None
    limits: TenantTable | None = None
    tls: PemContents | None = None


def in_force(keys: Keys, tenants: LimitsOfTenants, tls: ServerTls | None) -> InForce:
    """As they are now."""
    return InForce(
        keys.file.value if isinstance(keys, KeyRing) else None,
        tenants.file.value if isinstance(tenants, LimitsFile) else None,
        None if tls is None else tls.file.value.contents,
    )
