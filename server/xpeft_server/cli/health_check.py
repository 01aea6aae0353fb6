"""``python -m xpeft_server.cli.health_check``: exit status 0 if the server beside it answers, as the image asks for it.

Reads the variables that the server has its address and certificate from. It needs the standard library alone, as it is
started every few seconds on the cores that serve.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from collections.abc import Mapping
from typing import Final

_SECONDS: Final = 3.0
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def check_health(environ: Mapping[str, str]) -> None:
    """Ask ``/health``; behind TLS, whatever name the certificate has.

    A server that wants a certificate of its clients (XPEFT_TLS_CLIENT_CA) is asked for the handshake alone: this has
    none to show, and the event loop that answers a handshake is the one that would answer ``/health``.

    Raises: OSError or http.client.HTTPException if nobody answers in time, ValueError if the answer is not 200.
    """
    host = environ.get("XPEFT_HOST", "127.0.0.1").strip("[]")
    address = _ANY.get(host, host), int(environ.get("XPEFT_PORT", "8000"))
    connection = http.client.HTTPConnection(*address, timeout=_SECONDS)
    if "XPEFT_TLS_CERTIFICATE" in environ:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(*address, timeout=_SECONDS, context=context)
    try:
        connection.connect()
        if "XPEFT_TLS_CLIENT_CA" in environ:
            return
        connection.request("GET", "/health")
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        raise ValueError(f"/health answers {status}")


def main() -> None:
    try:
        check_health(os.environ)
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.exit(f"not healthy: {error}")


if __name__ == "__main__":
    main()
