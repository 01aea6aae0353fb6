"""``python -m xpeft_server.cli.health_check``: exit status 0 if the server beside it answers, as the image asks for it.
With ``--ready``: if it would answer requests.

Reads the variables that the server has its address and certificate from. It needs the standard library alone, as it is
started every few seconds on the cores that serve.
"""

from __future__ import annotations

import argparse
import http.client
import os
import ssl
import sys
from collections.abc import Mapping
from typing import Final

_SECONDS: Final = 3.0
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def check_health(environ: Mapping[str, str], *, path: str = "/health") -> None:
    """Ask ``path``; behind TLS, whatever name the certificate has.

    A server that wants a certificate of its clients (XPEFT_TLS_CLIENT_CA) is shown the one in XPEFT_CLIENT_CERTIFICATE.
    Where there is none, a question for ``/health`` is content with the handshake: the event loop that answers it is the
    one that would answer ``/health``.

    Raises: OSError or http.client.HTTPException if nobody answers in time, ValueError if the answer is not 200 or if
        a certificate that is needed is not there.
    """
    host = environ.get("XPEFT_HOST", "127.0.0.1").strip("[]")
    address = _ANY.get(host, host), int(environ.get("XPEFT_PORT", "8000"))
    connection = http.client.HTTPConnection(*address, timeout=_SECONDS)
    if "XPEFT_TLS_CERTIFICATE" in environ:
        connection = http.client.HTTPSConnection(*address, timeout=_SECONDS, context=_context(environ))
    handshake_alone = "XPEFT_TLS_CLIENT_CA" in environ and "XPEFT_CLIENT_CERTIFICATE" not in environ
    if handshake_alone and path != "/health":
        raise ValueError(f"{path} wants a certificate to show: XPEFT_CLIENT_CERTIFICATE, XPEFT_CLIENT_KEY")
    try:
        connection.connect()
        if handshake_alone:
            return
        connection.request("GET", path)
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        raise ValueError(f"{path} answers {status}")


def _context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Raises: ValueError if the client's certificate cannot be used."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate := environ.get("XPEFT_CLIENT_CERTIFICATE"):
        try:
            context.load_cert_chain(certificate, environ.get("XPEFT_CLIENT_KEY"))
        except OSError as error:
            raise ValueError(f"XPEFT_CLIENT_CERTIFICATE = {certificate!r}: {error}") from None
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether the server beside this answers.", allow_abbrev=False)
    parser.add_argument("--ready", action="store_true", help="ask /ready instead of /health")
    ready = parser.parse_args().ready
    try:
        check_health(os.environ, path="/ready" if ready else "/health")
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.exit(f"not {'ready' if ready else 'healthy'}: {error}")


if __name__ == "__main__":
    main()
