"""The files of the TLS settings as what connections are secured with."""

from __future__ import annotations

import ssl
from typing import Any

from xpeft_server.pem_files import PemFile, PemInvalid, load_authorities, load_certificate
from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_server.watched_file import WatchedFile


class ServerTls(ssl.SSLContext):
    """Secures each new connection with what the files held when it was last refreshed; one that is open keeps what it
    has. Each content has a context of its own, so that nothing of an earlier one is left: no authority, and no session
    that a client could resume.

    Raises: SettingsInvalid, naming setting and file.
    """

    def __new__(cls, certificate: PemFile, key: PemFile, client_ca: PemFile | None) -> ServerTls:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificate: PemFile, key: PemFile, client_ca: PemFile | None) -> None:
        files = (certificate, key) if client_ca is None else (certificate, key, client_ca)
        self.file = WatchedFile(
            *(file.path for file in files),
            read=lambda *_: _context(*files),
            invalid=SettingsInvalid,
            content="certificates",
        )

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """What event loops ask for at a new connection."""
        return self.file.value.wrap_bio(*arguments, **options)

    async def watch(self) -> None:
        """Keep in step with the files until cancelled."""
        await self.file.watch()


def server_tls(settings: Settings) -> ServerTls | None:
    """None without TLS. Raises: SettingsInvalid, naming setting and file."""
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None or key is None:
        return None
    return ServerTls(
        PemFile("tls_certificate", certificate),
        PemFile("tls_key", key),
        None if client_ca is None else PemFile("tls_client_ca", client_ca),
    )


def _context(certificate: PemFile, key: PemFile, client_ca: PemFile | None = None) -> ssl.SSLContext:
    """TLS 1.2 or later; with a certificate of every client where their authorities are known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        load_certificate(context, certificate, key)
        if client_ca is not None:
            load_authorities(context, client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except PemInvalid as error:
        raise SettingsInvalid(str(error)) from None
    return context
