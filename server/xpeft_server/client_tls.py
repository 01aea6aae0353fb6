"""A client's certificate over https, and the authorities that it trusts."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from .pem_files import PemFile, PemInvalid, client_context, load_certificate


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files. Without them no certificate is shown, and the system's authorities are trusted, or those of the
    variable ``SSL_CERT_FILE``. ``metadata["help"]`` of a field says what it is.
    """

    client_certificate: Path | None = field(
        default=None,
        metadata={"help": "PEM file of the client certificate, with its chain, for https servers that ask for one"},
    )
    client_key: Path | None = field(
        default=None,
        metadata={"help": "PEM file of that certificate's private key, unencrypted; by default it is in the same file"},
    )
    authority: Path | None = field(
        default=None,
        metadata={"help": "PEM file of the authorities to trust for https, instead of the system's"},
    )

    def given(self) -> dict[str, Path]:
        """Field → file, of those that are set."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: path for name, path in values if path is not None}

    def context(self) -> ssl.SSLContext:
        """Raises: PemInvalid, naming field and file."""
        files = {name: PemFile(name, path) for name, path in self.given().items()}
        certificate, key, authority = (files.get(each.name) for each in fields(self))
        if certificate is None and key is not None:
            raise PemInvalid(f"{key} cannot be used without a client_certificate")
        context = client_context(authority)
        if certificate is not None:
            load_certificate(context, certificate, key)
        return context


NO_FILES: Final = ClientTls()
