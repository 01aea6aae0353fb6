"""PEM files of certificates, keys and authorities, each called by the option that names it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class PemInvalid(Exception):
    """A file cannot be used; the message names option, file and reason."""


class PemFile(NamedTuple):
    option: str
    path: Path

    def __str__(self) -> str:
        return f"{self.option} = {str(self.path)!r}"


def load_certificate(context: ssl.SSLContext, certificate: PemFile, key: PemFile | None) -> None:
    """Args: key: None if it is in the certificate's file. Raises: PemInvalid."""
    for file in (certificate, key):
        if file is not None:
            content_of(file)
    try:
        # Without a password of its own OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate.path, None if key is None else key.path, password="")
    except (OSError, ValueError) as error:
        shown = f"{certificate} cannot be used" if key is None else f"{certificate} and {key} cannot be used together"
        raise PemInvalid(f"{shown}: {_reason(error)}") from None


def load_authorities(context: ssl.SSLContext, file: PemFile) -> None:
    """Beside those that the context has. Raises: PemInvalid."""
    with _naming(file):
        context.load_verify_locations(file.path)


def client_context(authorities: PemFile | None) -> ssl.SSLContext:
    """Trusts these alone; None: the system's, or those of the variable SSL_CERT_FILE. Raises: PemInvalid."""
    if authorities is None:
        return ssl.create_default_context()
    with _naming(authorities):
        return ssl.create_default_context(cafile=authorities.path)


def content_of(file: PemFile) -> bytes:
    """Raises: PemInvalid."""
    try:
        return file.path.read_bytes()
    except OSError as error:
        raise PemInvalid(f"{file} cannot be read: {error.strerror or error}") from None


@contextmanager
def _naming(file: PemFile) -> Iterator[None]:
    content_of(file)
    try:
        yield
    except OSError as error:
        raise PemInvalid(f"{file} cannot be used: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error)
