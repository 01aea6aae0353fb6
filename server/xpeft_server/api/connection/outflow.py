"""How much of what was sent a connection's client has not taken yet."""

from __future__ import annotations

import socket
import struct
import sys
from asyncio import Transport
from typing import Final, NamedTuple

# Of Linux' struct tcp_info: unacknowledged segments, bytes acknowledged so far, bytes not sent yet (Linux 4.6).
_UNACKNOWLEDGED: Final = struct.Struct("=24xI")
_ACKNOWLEDGED: Final = struct.Struct("=120xQ")
_UNSENT: Final = struct.Struct("=144xI")


class _Account(NamedTuple):
    """``taken`` grows, by whatever measure, with every byte that the client takes."""

    owes: bool
    taken: int


class Outflow:
    """A connection's answers on their way out, checked from time to time.

    Bytes are taken once the client's machine has acknowledged them, as the kernel counts it. That this process has
    written them proves nothing: a kernel buffers megabytes, so a client may have seen none of them, and one that reads
    slowly seems to stand still. Elsewhere than on Linux, what this process has written has to do.
    """

    def __init__(self, connected: socket.socket, transport: Transport) -> None:
        self._socket = connected
        self._transport = transport
        self._taken = 0
        self._since: float | None = None

    def untaken_for(self, now: float) -> float | None:
        """Seconds since the client was first seen to take no more; None where there is nothing to take.

        Args:
            now: monotonic seconds.
        """
        account = self._account()
        if not account.owes:
            self._since = None
            return None
        if self._since is None or account.taken != self._taken:
            self._since, self._taken = now, account.taken
        return now - self._since

    def drop(self) -> None:
        """End the connection and discard what is on its way, also in the kernel, which would retry for long."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _account(self) -> _Account:
        held = self._transport.get_write_buffer_size()
        if sys.platform != "linux":
            return _Account(held > 0, -held)
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNSENT.size)
        except OSError:  # closed, which the protocol has not been told yet
            return _Account(owes=False, taken=0)
        in_kernel = _UNACKNOWLEDGED.unpack_from(info)[0] or _UNSENT.unpack_from(info)[0]
        return _Account(bool(held or in_kernel), _ACKNOWLEDGED.unpack_from(info)[0])
