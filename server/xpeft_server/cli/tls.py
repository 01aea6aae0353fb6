"""The files of the TLS settings as what connections are secured with."""

from __future__ import annotations

import logging
import ssl
from typing import Any

from xpeft_server.pem_files import PemFile, PemInvalid, load_authorities, load_certificate
from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_server.watched_file import FileStamp, file_stamp, refresh_for_ever

log = logging.getLogger(__name__)


class ServerTls(ssl.SSLContext):
    """Secures each new connection with what the files held when it was last refreshed; one that is open keeps what it
    has. Each content has a context of its own, so that nothing of an earlier one is left: no authority, and no session
    that a client could resume.

    Raises: SettingsInvalid, naming setting and file.
    """

    _files: tuple[PemFile, ...]
    _stamps: list[FileStamp | None]  # of what is used
    _last: list[FileStamp | None]  # of the last look
    _current: ssl.SSLContext

    def __new__(cls, certificate: PemFile, key: PemFile, client_ca: PemFile | None) -> ServerTls:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificate: PemFile, key: PemFile, client_ca: PemFile | None) -> None:
        self._files = (certificate, key) if client_ca is None else (certificate, key, client_ca)
        self._stamps = self._last = self._look()
        self._current = _context(*self._files)

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """What event loops ask for at a new connection."""
        return self._current.wrap_bio(*arguments, **options)

    def refresh(self) -> None:
        """Read the files again if one changed. Files that cannot be used are logged once, change nothing and are read
        again each time; they do not go together while the one is written and the other is not yet."""
        stamps = self._look()
        is_new, self._last = stamps != self._last, stamps
        if stamps == self._stamps:
            return
        try:
            self._current = _context(*self._files)
        except SettingsInvalid as error:
            if is_new:
                log.error("the certificates stay as they were: %s", error)
        else:
            self._stamps = stamps
            log.info("read %s", ", ".join(map(str, self._files)))

    async def watch(self) -> None:
        """Refresh once a second, off the event loop, until cancelled."""
        await refresh_for_ever(self.refresh)

    def _look(self) -> list[FileStamp | None]:
        return [file_stamp(file.path) for file in self._files]


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
