"""What a benchmark asks of a server besides the load: facts, profiles, metrics."""

from __future__ import annotations

import http.client
import json
from typing import Any, Final
from urllib.parse import urlsplit

from xpeft_profiles import BankGeometry, write_profile_file
from xpeft_server.client_tls import NO_FILES, ClientTls
from xpeft_server.pem_files import PemInvalid

from ..command_line import shown_word
from ..random_profiles import random_profile

_PORTS: Final = {"http": 80, "https": 443}
_TIMEOUT: Final = 60.0  # seconds without a byte from the server


class ServerRefused(Exception):
    """The server answered otherwise than a benchmark needs; the message has the status and the answer."""


class ServerClient:
    """One server at ``http(s)://HOST:PORT``; a connection a call, since servers close those that are idle.

    Args: tls: of use for https. Attributes: tls: what secures connections; None without TLS.
    """

    def __init__(self, url: str, tls: ClientTls = NO_FILES) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
            raise ServerRefused(f"url {shown_word(url)!r} is not of the form http://HOST:PORT or https://HOST:PORT")
        try:
            self.host, self.port = parts.hostname, parts.port or _PORTS[parts.scheme]
        except ValueError as error:
            raise ServerRefused(f"url {url!r}: {error}") from None
        self.url = f"{parts.scheme}://{parts.netloc}"
        try:
            self.tls = tls.context() if parts.scheme == "https" else None
        except PemInvalid as error:
            raise ServerRefused(str(error)) from None

    def info(self, key: str | None) -> dict[str, Any]:
        """/info. Raises: ServerRefused."""
        document: dict[str, Any] = json.loads(self._call("GET", "/info", key))
        return document

    def put_profile(self, name: str, geometry: BankGeometry, key: str | None, *, seed: int, index: int) -> None:
        """Upload random profile ``index`` of the family ``seed``. Raises: ServerRefused."""
        body = write_profile_file(random_profile(geometry, seed=seed, index=index))
        self._call("PUT", f"/v1/profiles/{name}", key, body=body, kind="application/octet-stream")

    def metrics(self, key: str | None) -> dict[str, float]:
        """The series of /metrics by name, labels included as they stand there. Raises: ServerRefused."""
        page = self._call("GET", "/metrics", key).decode()
        samples = (line.rpartition(" ") for line in page.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def _call(
        self, method: str, path: str, key: str | None, *, body: bytes | None = None, kind: str | None = None
    ) -> bytes:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if kind is not None:
            headers["Content-Type"] = kind
        if self.tls is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT)
        else:
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=_TIMEOUT, context=self.tls)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerRefused(f"{method} {path}: {error or type(error).__name__}") from None
        finally:
            connection.close()
        if answer.status >= 300:
            raise ServerRefused(f"{method} {path}: {answer.status} {content[:500].decode(errors='replace')}")
        return content


def geometry_of(info: dict[str, Any]) -> BankGeometry:
    """The bank that /info describes."""
    bank = info["bank"]
    sizes = {name: bank[name] for name in ("fingerprint", "blocks", "adapters", "hidden", "width", "layer_norm")}
    return BankGeometry(**sizes)


def http_request(path: str, body: dict[str, Any], *, host: str, port: int, key: str | None) -> str:
    """A whole HTTP/1.1 request with a JSON body, ready to be written; ASCII."""
    content = json.dumps(body)
    authorization = "" if key is None else f"Authorization: Bearer {key}\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n{authorization}"
        f"Content-Length: {len(content)}\r\n\r\n{content}"
    )
