"""The files of the TLS settings as what connections are secured with."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_server.watched_file import FileStamp, file_stamp, refresh_for_ever

log = logging.getLogger(__name__)


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
    _load_certificate(context, certificate, key)
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise SettingsInvalid(f"tls_client_ca = {str(client_ca)!r} cannot be used: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class CertificateFiles:
    """Has a context secure new connections with the certificate and key that the files hold by then.

    Args:
        context: made from the same files; connections that are open keep what they have.
    """

    def __init__(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        self._context = context
        self._certificate = certificate
        self._key = key
        self._stamps = self._look()

    def refresh(self) -> None:
        """Read both again if one changed. A pair that does not go together is logged once and changes nothing, as it is
        while the one is written and the other is not yet."""
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            # Elsewhere first: half a pair would stay in the context.
            _load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._certificate, self._key)
            _load_certificate(self._context, self._certificate, self._key)
        except SettingsInvalid as error:
            log.error("the certificate stays as it was: %s", error)
        else:
            log.info("read the certificate of %s", self._certificate)

    async def watch(self) -> None:
        """Refresh once a second, off the event loop, until cancelled."""
        await refresh_for_ever(self.refresh)

    def _look(self) -> tuple[FileStamp | None, FileStamp | None]:
        return file_stamp(self._certificate), file_stamp(self._key)


def certificate_files(settings: Settings, context: ssl.SSLContext | None) -> CertificateFiles | None:
    """What watches the files of the settings; None without TLS."""
    if context is None or settings.tls_certificate is None or settings.tls_key is None:
        return None
    return CertificateFiles(context, settings.tls_certificate, settings.tls_key)


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        # Without a password of its own OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        pair = f"tls_certificate = {str(certificate)!r} and tls_key = {str(key)!r}"
        raise SettingsInvalid(f"{pair} cannot be used together: {_reason(error)}") from None


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
