"""The files of the TLS settings as what connections are secured with."""

from __future__ import annotations

import ssl
from pathlib import Path

from xpeft_server.settings import Settings, SettingsInvalid


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS 1.2 or later, with a certificate of every client where ``tls_client_ca`` is set; None without TLS.

    Raises: SettingsInvalid, naming setting and file.
    """
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        return None
    for name, path in (("tls_certificate", certificate), ("tls_key", key), ("tls_client_ca", client_ca)):
        if path is not None:
            _check_readable(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password of its own OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        pair = f"tls_certificate = {str(certificate)!r} and tls_key = {str(key)!r}"
        raise SettingsInvalid(f"{pair} cannot be used together: {_reason(error)}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise SettingsInvalid(f"tls_client_ca = {str(client_ca)!r} cannot be used: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SettingsInvalid(f"{name} = {str(path)!r} cannot be read: {error.strerror or error}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error)
