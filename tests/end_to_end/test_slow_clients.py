"""Clients that do not read, read slowly, or never begin, at a real server; and the others, who do not notice."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import new_key, write_keys

SECONDS = 3.0  # clients that read pause for far less: a machine may add two of its own
PATIENCE = ("--send-seconds", str(SECONDS))
FEW = 8


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A file, and the secret of each tenant in it; the operator's is ``ops``."""
    made = {tenant: new_key(id=tenant, tenant=tenant, role=Role.ADMIN, expires=None) for tenant in ("acme", "other")}
    made["ops"] = new_key(id="ops", tenant=None, role=Role.OPERATOR, expires=None)
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    write_keys(path, [entry for _, entry in made.values()])
    return path, {tenant: secret for tenant, (secret, _) in made.items()}


@pytest.fixture(scope="module")
def endless(
    tiny_llama: Path,
    keys: tuple[Path, dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
    server_of: Callable[..., Any],
) -> Iterator[Any]:
    """A server whose texts end only at 30,000 tokens, which takes it long; ``log`` is its log."""
    folder = tmp_path_factory.mktemp("endless-llama")
    shutil.copytree(tiny_llama, folder / "model")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / "model" / name).read_text())
        (folder / "model" / name).write_text(json.dumps(config | {"eos_token_id": None}))
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 30_000}))
    options = ["--kv-tokens", "100000", "--api-keys", str(keys[0]), "--metrics-open", *PATIENCE]
    server = server_of("--plm", str(folder / "model"), "--store", "memory://", *options, log=folder / "log")
    server.client.headers["authorization"] = f"Bearer {keys[1]['other']}"
    server.wait_until_ready()
    yield server
    assert server.stop() == 0


@contextlib.contextmanager
def lazy_client(server: Any, context: ssl.SSLContext | None = None) -> Iterator[socket.socket]:
    """A client whose machine takes little: it has to read."""
    url = httpx.URL(server.address)
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        plain.settimeout(30)
        plain.connect((url.host, url.port))
        if context is None:
            yield plain
        else:
            with context.wrap_socket(plain, server_hostname=url.host, suppress_ragged_eofs=False) as secured:
                yield secured


def unread(server: Any) -> float:
    count: float = server.metric('connection_ends_total{reason="unread"}')
    return count


def read_until_reset(client: socket.socket) -> bytes:
    read = bytearray()
    try:
        while part := client.recv(1 << 16):
            read += part
    except (ConnectionResetError, ssl.SSLEOFError):
        return bytes(read)
    pytest.fail(f"the answer ended as it should: {bytes(read[-100:])!r}")


def test_a_stream_that_nobody_reads_ends_with_its_generation_and_the_others_are_answered(
    endless: Any, keys: tuple[Path, dict[str, str]], until: Any
) -> None:
    body = json.dumps({"profile": "base", "prompt": "w1", "max_new_tokens": 29_000, "stream": True})
    head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keys[1]['acme']}\r\n"
    head += f"X-Request-Id: lazy\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    before = unread(endless)
    with lazy_client(endless) as client:
        client.sendall((head + body).encode())
        began = time.monotonic()
        until(lambda: endless.metric("requests_running") == 1)
        while unread(endless) == before:
            short = {"profile": "base", "prompt": "w2", "max_new_tokens": 2}
            assert endless.client.post("/v1/generate", json=short).status_code == 200
            assert time.monotonic() - began < 30
        assert time.monotonic() - began >= SECONDS
        until(lambda: endless.metric("requests_running") == 0)
        until(lambda: endless.metric('kv_tokens{state="used"}') == 0)
        # It was far from its end.
        assert endless.metric("generation_tokens_total") < 29_000
        assert b"[DONE]" not in read_until_reset(client)
    assert endless.metric('requests_total{outcome="cancelled",route="/v1/generate"}') == 1
    lines = [json.loads(line) for line in endless.log.read_text().splitlines() if "took nothing" in line]
    assert [(line["level"], line["request_id"], line["tenant"]) for line in lines] == [("warning", "lazy", "acme")]


def test_a_stream_that_is_read_slowly_is_not_ended(endless: Any, keys: tuple[Path, dict[str, str]]) -> None:
    body = json.dumps({"profile": "base", "prompt": "w1", "max_new_tokens": 150, "stream": True})
    head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {keys[1]['acme']}\r\n"
    head += f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    before = unread(endless)
    began = time.monotonic()
    with lazy_client(endless) as client:
        client.sendall((head + body).encode())
        assert slowly(client, piece=2000, seconds=SECONDS / 5).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert time.monotonic() - began > 1.5 * SECONDS
    assert unread(endless) == before


def slowly(client: socket.socket, *, piece: int, seconds: float) -> bytes:
    """All that comes, a piece at a time."""
    read = bytearray()
    while part := client.recv(piece):
        read += part
        time.sleep(seconds)
    return bytes(read)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def secure(
    server_starter: Any, authority: trustme.CA, trusting: ssl.SSLContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A server that speaks https on eight connections; its client trusts it."""
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    files = ["--tls-certificate", str(folder / "certificate.pem"), "--tls-key", str(folder / "key.pem")]
    log = folder / "log"
    server = server_starter(
        "memory://", *files, *PATIENCE, "--idle-seconds", str(SECONDS), "--connections", str(FEW), log=log
    )
    with httpx.Client(base_url=server.address, verify=trusting, timeout=30) as client:
        server.client.close()
        server.client = client
        yield server
    assert server.stop() == 0
    assert "Traceback" not in log.read_text()


LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


def test_an_answer_over_tls_that_nobody_reads_ends(secure: Any, trusting: ssl.SSLContext, until: Any) -> None:
    with lazy_client(secure, trusting) as client:
        client.sendall(LARGE)
        until(lambda: unread(secure) == 1)
        assert secure.metric('requests_total{outcome="ok",route="/openapi.json"}') == 1
        read_until_reset(client)
    until(lambda: secure.metric("connections") == 1)


def test_an_answer_over_tls_that_is_read_slowly_is_whole(secure: Any, trusting: ssl.SSLContext, until: Any) -> None:
    before = unread(secure)
    size = len(secure.client.get("/openapi.json").content)

    def read(close: bytes) -> None:
        with lazy_client(secure, trusting) as client:
            began = time.monotonic()
            client.sendall(LARGE.removesuffix(b"\r\n") + close + b"\r\n")
            # A client's TLS takes a record in as a whole.
            _, _, body = slowly(client, piece=1 << 14, seconds=SECONDS / 5).partition(b"\r\n\r\n")
            assert len(body) == size
            assert time.monotonic() - began > 1.5 * SECONDS

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, [b"", b"Connection: close\r\n"]))
    assert unread(secure) == before
    until(lambda: secure.metric("connections") == 1)


def test_who_never_begins_to_speak_tls_counts_and_goes_and_beyond_the_limit_nobody_waits(
    secure: Any, trusting: ssl.SSLContext, until: Any
) -> None:
    url = httpx.URL(secure.address)
    until(lambda: secure.metric("connections") == 1)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((url.host, url.port), 30)) for _ in range(FEW - 1)]
        until(lambda: secure.metric("connections") == FEW)
        with socket.create_connection((url.host, url.port), 30) as late:
            assert late.recv(1) == b""
        until(lambda: secure.metric('connection_ends_total{reason="refused"}') == 1)
        for each in silent:
            assert each.recv(1) == b""
        until(lambda: secure.metric('connection_ends_total{reason="late"}') == FEW - 1)
    until(lambda: secure.metric("connections") == 1)
    assert httpx.get(f"{secure.address}/health", verify=trusting, timeout=30).status_code == 200


def test_where_there_is_no_room_a_probe_over_tls_is_answered_and_others_are_told_so(
    secure: Any, trusting: ssl.SSLContext, until: Any
) -> None:
    url = httpx.URL(secure.address)
    until(lambda: secure.metric("connections") == 1)
    with contextlib.ExitStack() as stack:
        for _ in range(FEW - 1):
            stack.enter_context(socket.create_connection((url.host, url.port), 30))
        until(lambda: secure.metric("connections") == FEW)
        before = secure.metric('connection_ends_total{reason="refused"}')
        for _ in range(10):
            for probe in ("/health", "/ready"):
                answer = httpx.get(f"{secure.address}{probe}", verify=trusting, timeout=30)
                assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert secure.metric("connections") == FEW  # which is no longer idle, however slow the machine
        assert secure.metric('connection_ends_total{reason="refused"}') == before
        refused = httpx.get(f"{secure.address}/info", verify=trusting, timeout=30)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_connections")
        assert secure.metric('connection_ends_total{reason="refused"}') == before + 1
        assert secure.metric("connections") == FEW
    until(lambda: secure.metric("connections") == 1)
