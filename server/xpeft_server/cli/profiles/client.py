"""The profile routes of a server as calls; every way in which they fail is one readable line."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from xpeft_server.client_tls import NO_FILES, ClientTls
from xpeft_server.pem_files import PemInvalid

FILE_TYPE = "application/octet-stream"
_VERSION = re.compile(r"\*|sha256:[0-9a-f]{64}")
_PAGE = 1000  # profiles; the most that one answer lists
_TIMEOUT = 60.0  # seconds without a byte from the server
# How a server that knows its clients ends a connection: with an alert, as OpenSSL calls it, or without a word.
_ALERTS = ("ALERT_CERTIFICATE_REQUIRED", "ALERT_UNKNOWN_CA")
_CUT_OFF = (http.client.RemoteDisconnected, ConnectionResetError, ssl.SSLEOFError)


class ClientError(Exception):
    """The server refused, or did not answer as one; the message is a whole sentence for the command line."""


class ServerRefused(ClientError):
    """An answer in the server's form of an error.

    ``retry_after``: seconds, None where the server named none; ``reason``: its message alone.
    """

    def __init__(self, message: str, *, status: int, code: str | None, reason: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.reason = reason
        self.retry_after = retry_after


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


class ProfilesClient:
    """One server, one key. Opens a connection a call; follows no redirects, reads no proxy from the environment.

    Args: tls: files, which only an https URL may have. Raises: ClientError from every method.
    """

    def __init__(self, url: str, api_key: str | None = None, tls: ClientTls = NO_FILES) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ClientError(f"url is {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment or parts.username:
            raise ClientError(f"url is {url!r}, it must be like http://127.0.0.1:8000 or https://HOST")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ClientError("the API key has characters that no key has: copy it again")
        self._tls = _tls_context(tls) if parts.scheme == "https" else None
        self._shown = tls.client_certificate
        if self._tls is None and (given := tls.given()):
            name, path = next(iter(given.items()))
            raise ClientError(f"{name} = {str(path)!r} is for https, and url is {url!r}")
        self._prefix = parts.path.rstrip("/")
        self._url = url
        self._api_key = api_key

    def put(self, name: str, file: bytes, *, if_match: str | None, if_none_match: str | None) -> Answer:
        """Upload a profile file; 201 if it is new, 200 if it took the place of one or is the same."""
        headers = {"Content-Type": FILE_TYPE, **_conditions(if_match, if_none_match)}
        return self._call("PUT", _path(name), headers=headers, body=file)

    def metadata(self, name: str) -> dict[str, Any]:
        """What the server tells of a profile."""
        return self._object(self._call("GET", _path(name), headers={"Accept": "application/json"}))

    def file(self, name: str) -> bytes:
        """The profile file, which the server would accept again as the same version."""
        answer = self._call("GET", _path(name), headers={"Accept": FILE_TYPE})
        if answer.headers.get("content-type") != FILE_TYPE:
            raise ClientError(f"{self._url} sent {answer.headers.get('content-type')!r} where a profile file belongs")
        return answer.body

    def delete(self, name: str, *, if_match: str | None) -> None:
        """Remove a profile."""
        self._call("DELETE", _path(name), headers=_conditions(if_match, None))

    def bank(self) -> str:
        """The fingerprint of the bank that the server has."""
        info = self._object(self._call("GET", "/info"))
        try:
            return str(info["bank"]["fingerprint"])
        except (KeyError, TypeError):
            raise ClientError(f"{self._url} did not name its bank: is it an xpeft server?") from None

    def list(self, *, prefix: str, limit: int | None) -> Iterator[dict[str, Any]]:
        """The tenant's profiles by name, page after page, at most ``limit`` of them."""
        try:
            prefix.encode()
        except UnicodeEncodeError:
            raise ClientError(f"prefix is {prefix!r}, which is not UTF-8") from None
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            query = {"limit": str(min(_PAGE, left or _PAGE)), "prefix": prefix}
            if cursor is not None:
                query["cursor"] = cursor
            page = self._object(self._call("GET", f"/v1/profiles?{urlencode(query)}"))
            profiles, following = page.get("data"), page.get("next_cursor")
            if not isinstance(profiles, list):
                raise ClientError(f"{self._url} sent a page without a list of profiles: is it an xpeft server?")
            for profile in profiles[:left]:
                if not _names_profile(profile):
                    raise ClientError(
                        f"{self._url} listed {profile!r:.80}, which names no profile or no time of its last change"
                    )
                yield profile
            left = None if left is None else left - len(profiles)
            if following is None:
                return
            if following == cursor:
                raise ClientError(f"{self._url} sent the page cursor {cursor!r} twice: stopped, the list is not whole")
            cursor = following

    def _object(self, answer: Answer) -> dict[str, Any]:
        try:
            value = json.loads(answer.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ClientError(f"{self._url} answered with something else than a JSON object: is it an xpeft server?")
        return value

    def _call(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        sent = dict(headers or {})
        if self._api_key:
            sent["Authorization"] = f"Bearer {self._api_key}"
        try:
            answer = self._exchanged(method, self._prefix + path, sent, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ClientError(self._why(error)) from None
        if not 200 <= answer.status < 300:
            raise _refusal(answer, self._url)
        return answer

    def _exchanged(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> Answer:
        """Raises: OSError, HTTPException, ValueError."""
        connection = self._new_connection()
        try:
            connection.connect()
            return exchange(connection, method, path, headers, body)
        finally:
            connection.close()

    def _new_connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT)
        return http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT, context=self._tls)

    def _why(self, error: Exception) -> str:
        match error:
            case ConnectionRefusedError():
                return (
                    f"nothing listens at {self._url}: start a server with `xpeft serve`, "
                    "or say where it is with --url or XPEFT_URL"
                )
            case TimeoutError():
                return f"{self._url} sent nothing for {_TIMEOUT:g} seconds: try again, or look at its /ready"
            case ssl.SSLCertVerificationError():
                return (
                    f"{self._url}: its certificate is not trusted ({error.verify_message});"
                    " --authority, or the variable SSL_CERT_FILE, names a file of other authorities"
                )
            case ssl.SSLError() if (error.reason or "").endswith(_ALERTS):
                return f"{self._url} takes no connection from here: {self._own_certificate()}"
            case _ if self._tls is not None and isinstance(error, _CUT_OFF):
                return f"{self._url} closed the connection without an answer; perhaps {self._own_certificate()}"
            case ssl.SSLError():
                return f"{self._url}: no secure connection ({error.reason or error}); http:// if it speaks no TLS"
            case _:
                return f"{self._url} cannot be reached: {error or type(error).__name__}"

    def _own_certificate(self) -> str:
        """What is wrong with it, where a server wants one."""
        if self._shown is None:
            return "it wants a certificate of its clients: give --client-certificate and --client-key"
        return f"it does not know who signed --client-certificate {self._shown}"


def _tls_context(tls: ClientTls) -> ssl.SSLContext:
    try:
        return tls.context()
    except PemInvalid as error:
        raise ClientError(str(error)) from None


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str], body: bytes | None
) -> Answer:
    """One request and its answer on an open connection. Raises: OSError, HTTPException, ValueError."""
    # A server that refuses a large body answers before it has read it.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request(method, path, body=body, headers=dict(headers))
    response = connection.getresponse()
    fields = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, fields, response.read())


def shown_upload(name: str, answer: Answer) -> str:
    """What `ProfilesClient.put` did, for people."""
    outcome = "created" if answer.status == 201 else "stored"
    return f"{outcome} {name} {answer.headers.get('etag', '').strip(chr(34))}".rstrip()


def _path(name: str) -> str:
    return f"/v1/profiles/{quote(name, safe='')}"


def _conditions(if_match: str | None, if_none_match: str | None) -> dict[str, str]:
    """Versions as entity tags: quoted, but for ``*``."""
    headers = {}
    for field, version in (("If-Match", if_match), ("If-None-Match", if_none_match)):
        if version is None:
            continue
        if not _VERSION.fullmatch(version):
            raise ClientError(f"{field.lower()} is {version!r}, it must be a version (sha256: and 64 hex digits) or *")
        headers[field] = version if version == "*" else f'"{version}"'
    return headers


def _refusal(answer: Answer, url: str) -> ClientError:
    """The server's error envelope as one line, with what to do where the status says it."""
    phrase = f"{answer.status} {http.client.responses.get(answer.status, '')}".rstrip()
    try:
        error = json.loads(answer.body)["error"]
        reason, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        start = answer.body[:200].decode(errors="replace")
        return ClientError(f"{url} answered {phrase} in no form of an xpeft server's: {start!r}")
    retry_after = answer.headers.get("retry-after")
    hints = {
        401: "; give a key with --api-key or XPEFT_API_KEY",
        429: f"; try again in {retry_after or 'a few'} seconds",
        503: f"; try again in {retry_after or 'a few'} seconds",
    }
    request = answer.headers.get("x-request-id")
    message = (
        f"{phrase}{f' ({code})' if code else ''}: {reason}{hints.get(answer.status, '')}"
        f"{f' [request {request}]' if request else ''}"
    )
    seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    return ServerRefused(message, status=answer.status, code=code, reason=reason, retry_after=seconds)


def _names_profile(entry: Any) -> bool:
    """Of a list: whether there is what every command relies on."""
    return (
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("updated"), int | float)
    )
