"""Several connections to one server, for many calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from xpeft_server.client_tls import NO_FILES, ClientTls

from .kept_client import KeptProfilesClient

T = TypeVar("T")
U = TypeVar("U")
CONNECTIONS: Final = 8


class ProfilesPool:
    """To be closed. Raises: ClientError if the URL is none, or a file of ``tls`` cannot be used."""

    def __init__(self, url: str, api_key: str | None, tls: ClientTls = NO_FILES) -> None:
        self.client = KeptProfilesClient(url, api_key, tls)
        self._clients: list[KeptProfilesClient] = [self.client]
        self._of_thread = threading.local()
        self._address = (url, api_key, tls)
        self._threads = ThreadPoolExecutor(CONNECTIONS, "xpeft-profiles", initializer=self._connect)

    def map(self, call: Callable[[KeptProfilesClient, T], U], items: Sequence[T]) -> list[U]:
        """One result per item, in order. Raises: what the first failing call raised; the rest are not begun."""
        futures = [self._threads.submit(self._called, call, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for client in self._clients:
            client.close()

    def _called(self, call: Callable[[KeptProfilesClient, T], U], item: T) -> U:
        return call(self._of_thread.client, item)

    def _connect(self) -> None:
        self._of_thread.client = KeptProfilesClient(*self._address)
        self._clients.append(self._of_thread.client)
