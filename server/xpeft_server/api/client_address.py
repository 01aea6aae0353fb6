"""Who connected, as logs show it."""

from __future__ import annotations


def shown_client(client: tuple[str, int] | None) -> str | None:
    """Address and port; an IPv6 address in brackets, because it has colons of its own."""
    if client is None:
        return None
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
