"""The image's health check against servers that are well, ill, not ready, frozen, absent, and behind TLS."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

COMMAND = [sys.executable, "-m", "xpeft_server.cli.health_check"]


class _Server(HTTPServer):
    status = 200
    path = "/health"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that ends its handshake and goes is no error here."""


class _ServerOfSix(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        self.send_response(self.server.status if self.path == self.server.path else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


class Files:
    """A server's certificate and key; a client's, in two files and in one, and the authority of clients."""

    def __init__(self, folder: Path) -> None:
        issued = trustme.CA().issue_cert("xpeft.example.com")
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        issued.cert_chain_pems[0].write_to_path(self.certificate)
        issued.private_key_pem.write_to_path(self.key)
        clients = trustme.CA()
        client = clients.issue_cert("probe")
        self.clients, self.client = folder / "clients.pem", folder / "client.pem"
        self.client_key, self.client_both = folder / "client.key", folder / "client.both"
        clients.cert_pem.write_to_path(self.clients)
        client.cert_chain_pems[0].write_to_path(self.client)
        client.private_key_pem.write_to_path(self.client_key)
        client.private_key_and_cert_chain_pem.write_to_path(self.client_both)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@contextmanager
def serving(
    status: int = 200, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1", path: str = "/health"
) -> Iterator[str]:
    """The port of a server where ``path`` answers ``status``, and any other 404."""
    with (_ServerOfSix if ":" in address else _Server)((address, 0), _Handler) as server:
        server.status, server.path = status, path
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield str(server.server_port)
        server.shutdown()
        thread.join()


def check(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {f"XPEFT_{name.upper()}": value for name, value in variables.items()}
    # Whoever asks a proxy for 127.0.0.1 asks the wrong machine.
    environment |= {"http_proxy": "http://192.0.2.1:1", "https_proxy": "http://192.0.2.1:1"}
    return subprocess.run(
        [*COMMAND, *options], env=environment, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])  # noqa: S104
def test_a_server_that_answers_is_healthy_wherever_it_listens(host: str) -> None:
    with serving() as port:
        done = check(host=host, port=port)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::", "[::]", "::1"])
def test_a_server_that_answers_by_ipv6_is_healthy(host: str) -> None:
    with serving(address="::1") as port:
        assert check(host=host, port=port).returncode == 0


def test_a_server_that_answers_with_an_error_is_not_healthy() -> None:
    with serving(status=503) as port:
        done = check(port=port)
    assert (done.returncode, done.stderr) == (1, "not healthy: /health answers 503\n")


def test_where_nobody_listens_nobody_is_healthy() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = check(port=str(closed.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.startswith("not healthy: ")
    assert "Connection refused" in done.stderr


def test_a_server_that_accepts_and_says_nothing_is_not_healthy_over_tls_neither(files: Files) -> None:
    tls = {"tls_certificate": str(files.certificate), "tls_client_ca": str(files.certificate)}
    with socket.create_server(("127.0.0.1", 0)) as frozen, ThreadPoolExecutor() as both:
        port = str(frozen.getsockname()[1])
        asked = [both.submit(check, port=port, **told) for told in ({}, tls)]
        done = [each.result() for each in asked]
    assert [each.returncode for each in done] == [1, 1]
    assert all("timed out" in each.stderr for each in done)


def test_a_port_that_is_none_is_named() -> None:
    done = check(port="eighty")
    assert done.returncode == 1
    assert "'eighty'" in done.stderr


def tls_server(files: Files, verify: ssl.VerifyMode = ssl.CERT_NONE) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.clients)
    context.verify_mode = verify
    return context


@pytest.mark.parametrize("status", [200, 503])
def test_behind_tls_it_asks_the_same_whatever_name_the_certificate_has(files: Files, status: int) -> None:
    with serving(status, tls_server(files)) as port:
        assert check(port=port, tls_certificate=str(files.certificate)).returncode == int(status != 200)
        assert check(port=port).returncode == 1


def test_a_server_that_wants_a_certificate_of_its_clients_is_asked_for_the_handshake_alone(files: Files) -> None:
    with serving(tls=tls_server(files, ssl.CERT_REQUIRED)) as port:
        told = {"port": port, "tls_certificate": str(files.certificate)}
        assert check(**told, tls_client_ca=str(files.certificate)).returncode == 0
        assert check(**told).returncode == 1


def test_readiness_is_asked_for_by_an_option() -> None:
    with serving(path="/ready") as port:
        done = check("--ready", port=port)
        assert check(port=port).returncode == 1
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_server_that_is_not_ready_is_told_apart_from_one_that_is_ill(files: Files) -> None:
    for tls, told in ((None, {}), (tls_server(files), {"tls_certificate": str(files.certificate)})):
        with serving(503, tls, path="/ready") as port:
            done = check("--ready", port=port, **told)
        assert (done.returncode, done.stderr) == (1, "not ready: /ready answers 503\n")


@pytest.mark.parametrize("separate", [True, False], ids=["two files", "one file"])
@pytest.mark.parametrize(("option", "path"), [("--ready", "/ready"), (None, "/health")])
def test_with_a_clients_certificate_a_server_that_wants_one_answers_for_itself(
    files: Files, option: str | None, path: str, separate: bool
) -> None:
    told = {"tls_certificate": str(files.certificate), "tls_client_ca": str(files.clients)}
    if separate:
        told |= {"client_certificate": str(files.client), "client_key": str(files.client_key)}
    else:
        told |= {"client_certificate": str(files.client_both)}
    options = [option] if option else []
    for status, code in ((200, 0), (503, 1)):
        with serving(status, tls_server(files, ssl.CERT_REQUIRED), path=path) as port:
            done = check(*options, port=port, **told)
        assert done.returncode == code, done.stderr


def test_without_a_clients_certificate_nothing_is_said_of_readiness(files: Files) -> None:
    with serving(tls=tls_server(files, ssl.CERT_REQUIRED), path="/ready") as port:
        done = check("--ready", port=port, tls_certificate=str(files.certificate), tls_client_ca=str(files.clients))
    assert (done.returncode, done.stderr) == (
        1,
        "not ready: /ready wants a certificate to show: XPEFT_CLIENT_CERTIFICATE, XPEFT_CLIENT_KEY\n",
    )


def test_a_clients_certificate_that_is_not_there_is_an_error_not_a_handshake(files: Files) -> None:
    told = {"tls_certificate": str(files.certificate), "tls_client_ca": str(files.clients)}
    with serving(tls=tls_server(files, ssl.CERT_REQUIRED)) as port:
        done = check(port=port, **told, client_certificate="nowhere.pem")
    assert done.returncode == 1
    assert done.stderr.startswith("not healthy: XPEFT_CLIENT_CERTIFICATE = 'nowhere.pem': ")
    assert "No such file" in done.stderr


def test_an_option_that_it_does_not_know_is_refused() -> None:
    assert check("--redy").returncode == 2


def test_it_starts_without_any_library() -> None:
    program = "import sys, xpeft_server.cli.health_check; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"pydantic", "typer", "torch", "starlette"} & set(done.stdout.split()) == set()
