"""The files of the TLS settings as what connections are secured with."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from xpeft_server.pem_files import PemFile, PemInvalid, content_of, load_authorities, load_certificate
from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_server.watched_file import WatchedFile

_OPTIONS = ("tls_certificate", "tls_key", "tls_client_ca")

PemContents = tuple[bytes, ...]
"""Of the files of certificate, key and, if there is one, authorities."""


class Secured(NamedTuple):
    context: ssl.SSLContext
    contents: PemContents  # that it was made of


class ServerTls(ssl.SSLContext):
    """Secures each new connection with the last readable content of the files; open connections keep theirs.

    Every content has a context of its own, so that nothing of an earlier one is left: no authority, and no session that
    a client could resume.

    Args:
        files: of certificate, key and, if clients must have certificates, their authorities.
        in_force: what counts where the files cannot be used at the start, until they can.
    Raises: SettingsInvalid, naming setting and file, if they cannot be used at the start, and nothing is in force.
    """

    def __new__(cls, *files: PemFile, in_force: PemContents | None = None) -> ServerTls:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, *files: PemFile, in_force: PemContents | None = None) -> None:
        self.file = WatchedFile(
            *(file.path for file in files),
            read=lambda *_: _secured(*files),
            invalid=SettingsInvalid,
            content="certificates",
            in_force=None if in_force is None else _secured_again(in_force),
        )

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Called by event loops for a new connection."""
        return self.file.value.context.wrap_bio(*arguments, **options)

    async def watch(self) -> None:
        """Keep in step with the files until cancelled."""
        await self.file.watch()


def server_tls(settings: Settings, *, in_force: PemContents | None = None) -> ServerTls | None:
    """None without TLS. Raises: as `ServerTls`."""
    if settings.tls_certificate is None:
        return None
    paths = (settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    files = [PemFile(option, path) for option, path in zip(_OPTIONS, paths, strict=True) if path is not None]
    return ServerTls(*files, in_force=in_force)


def _secured(certificate: PemFile, key: PemFile, client_ca: PemFile | None = None) -> Secured:
    """TLS 1.2 or later; with a certificate of every client where their authorities are known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        load_certificate(context, certificate, key)
        if client_ca is not None:
            load_authorities(context, client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        files = (certificate, key) if client_ca is None else (certificate, key, client_ca)
        return Secured(context, tuple(map(content_of, files)))
    except PemInvalid as error:
        raise SettingsInvalid(str(error)) from None


def _secured_again(contents: PemContents) -> Secured:
    """OpenSSL takes certificate and key from files alone: they have none on a disk."""
    with ExitStack() as copies:
        return _secured(*(PemFile("in force", copies.enter_context(_in_memory(content))) for content in contents))


@contextmanager
def _in_memory(content: bytes) -> Iterator[Path]:
    with os.fdopen(os.memfd_create("xpeft-tls"), "wb") as file:
        file.write(content)
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")
