"""The profile routes of a server over a persistent connection."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from typing import Final

from xpeft_profiles import TooManyProfiles
from xpeft_server.client_tls import NO_FILES, ClientTls

from .client import Answer, ProfilesClient, ServerRefused, exchange

_TRIES: Final = 6
_WAIT_MAX: Final = 30.0  # seconds, whatever the server asks for
_LATER: Final = (429, 503)


class KeptProfilesClient(ProfilesClient):
    """Used by one thread. A request is sent once more, on a new connection, if the server had closed the old one, and
    tried again when the server says if it was refused for now.
    """

    def __init__(self, url: str, api_key: str | None = None, tls: ClientTls = NO_FILES) -> None:
        super().__init__(url, api_key, tls)
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        for left in range(_TRIES - 1, -1, -1):
            try:
                return super()._call(method, path, headers=headers, body=body)
            except ServerRefused as refusal:
                if refusal.status not in _LATER or refusal.code == TooManyProfiles.code or not left:
                    raise
                time.sleep(min(refusal.retry_after or 1.0, _WAIT_MAX))
        raise AssertionError("unreachable")

    def _exchanged(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        if self._connection is not None:
            try:
                return self._kept(self._connection, method, path, headers, body)
            except (http.client.RemoteDisconnected, ConnectionError):
                self.close()
        connection = self._new_connection()
        connection.connect()
        return self._kept(connection, method, path, headers, body)

    def _kept(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> Answer:
        self._connection = None
        try:
            answer = exchange(connection, method, path, headers, body)
        except BaseException:
            connection.close()
            raise
        # http.client closes what the server wants closed.
        if connection.sock is not None:
            self._connection = connection
        return answer
