"""The socket that the server will listen on, taken before the model is loaded."""

from __future__ import annotations

import socket


def bind(host: str, port: int) -> socket.socket:
    """Take the address; nobody can connect until the server listens. Raises: OSError, naming the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"host = {host!r}: {error.strerror or error}") from None
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise OSError(f"cannot listen on host = {host!r}, port = {port}: {error.strerror or error}") from None
    return taken


def address_of(taken: socket.socket, scheme: str = "http") -> str:
    """``http://HOST:PORT`` as a client on this machine would type it."""
    host, port = taken.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
