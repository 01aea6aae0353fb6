"""A real server that speaks https, and clients that trust it or do not."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import redis
import trustme
from cryptography import x509

from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import new_key, write_keys


class Authority(NamedTuple):
    """A private CA, in a file too."""

    ca: trustme.CA
    path: Path

    def context(self, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """Of a client that trusts only this, and may have a certificate."""
        context = ssl.create_default_context(cafile=self.path)
        if certificate is not None:
            certificate.configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> list[Authority]:
    """The right one and a wrong one."""
    folder = tmp_path_factory.mktemp("tls")
    found = [Authority(trustme.CA(), folder / f"ca{number}.pem") for number in range(2)]
    for each in found:
        each.ca.cert_pem.write_to_path(each.path)
    return found


@pytest.fixture(scope="module")
def tls_options(authorities: list[Authority]) -> list[str]:
    certificate = authorities[0].ca.issue_cert("127.0.0.1", "localhost")
    folder = authorities[0].path.parent
    certificate.private_key_pem.write_to_path(folder / "server.key")
    for part in certificate.cert_chain_pems:
        part.write_to_path(folder / "server.pem", append=True)
    return ["--tls-certificate", str(folder / "server.pem"), "--tls-key", str(folder / "server.key")]


def served(start: Any, *arguments: str) -> Iterator[Any]:
    server = start("memory://", *arguments)
    assert str(server.client.base_url).startswith("https://127.0.0.1:")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def server(server_starter: Any, tls_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """With an admin's key, which is ``server.key``, and an audit log, ``server.audit``."""
    folder = tmp_path_factory.mktemp("keys")
    secret, entry = new_key(id="admin", tenant="acme", role=Role.ADMIN, expires=None)
    write_keys(folder / "keys.json", [entry])
    options = ["--api-keys", str(folder / "keys.json"), "--audit-log", str(folder / "audit.jsonl")]
    for server in served(server_starter, *tls_options, *options):
        server.key, server.audit = secret, folder / "audit.jsonl"
        yield server


@pytest.fixture(scope="module")
def strict_server(server_starter: Any, tls_options: list[str], authorities: list[Authority]) -> Iterator[Any]:
    """Wants a certificate of every client."""
    yield from served(server_starter, *tls_options, "--tls-client-ca", str(authorities[0].path))


def health(server: Any, context: ssl.SSLContext) -> int:
    return httpx.get(f"{server.client.base_url}/health", verify=context, timeout=30).status_code


def test_who_trusts_the_authority_is_served_and_who_trusts_another_is_not(
    server: Any, authorities: list[Authority]
) -> None:
    right, wrong = authorities
    assert health(server, right.context()) == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        health(server, wrong.context())
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        health(server, ssl.create_default_context())
    assert health(server, right.context()) == 200


def serial(server: Any, authority: Authority) -> int:
    """Of the certificate that a new connection is shown."""
    url = server.client.base_url
    with (
        socket.create_connection((url.host, url.port), timeout=30) as plain,
        authority.context().wrap_socket(plain, server_hostname=url.host) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_a_renewed_certificate_needs_no_restart(
    server_starter: Any, authorities: list[Authority], tmp_path: Path
) -> None:
    right = authorities[0]

    def issue() -> None:
        made = right.ca.issue_cert("127.0.0.1")
        for name, parts in (("key", [made.private_key_pem]), ("pem", made.cert_chain_pems)):
            (tmp_path / "new").write_bytes(b"".join(part.bytes() for part in parts))
            (tmp_path / "new").replace(tmp_path / f"server.{name}")

    issue()
    files = ["--tls-certificate", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key")]
    for server in served(server_starter, *files):
        before = serial(server, right)
        with httpx.Client(base_url=server.client.base_url, verify=right.context(), timeout=30) as kept:
            assert kept.get("/health").status_code == 200
            issue()
            deadline = time.monotonic() + 30
            while serial(server, right) == before:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert kept.get("/health").status_code == 200
        assert health(server, right.context()) == 200


@pytest.mark.parametrize(
    "said", [b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 500, b"\0" * 500]
)
def test_who_speaks_no_tls_is_cut_off_and_nobody_else_is_disturbed(
    server: Any, authorities: list[Authority], said: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.client.base_url.port), timeout=30) as plain:
        plain.sendall(said)
        plain.shutdown(socket.SHUT_WR)
        try:
            answer = plain.recv(1000)
        except ConnectionResetError:
            answer = b""
    assert b"HTTP/" not in answer
    assert health(server, authorities[0].context()) == 200


def test_tls_1_1_is_refused_and_1_2_is_spoken(server: Any, authorities: list[Authority]) -> None:
    context = authorities[0].context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert health(server, context) == 200
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(httpx.ConnectError):
        health(server, context)


@pytest.fixture
def xpeft(server: Any, warm_programs: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line as a client of that server."""
    program = str(warm_programs / "xpeft")
    told = {name: value for name, value in os.environ.items() if not name.startswith(("SSL_CERT", "XPEFT"))}
    told |= {"XPEFT_URL": str(server.client.base_url), "XPEFT_API_KEY": server.key}

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], env=told | env, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_the_command_line_trusts_the_authority_in_ssl_cert_file(
    xpeft: Callable[..., subprocess.CompletedProcess[str]], authorities: list[Authority]
) -> None:
    listed = xpeft("profiles", "list", SSL_CERT_FILE=str(authorities[0].path))
    assert (listed.returncode, listed.stdout.splitlines()[-1]) == (0, "0 profiles")
    for env in ({}, {"SSL_CERT_FILE": str(authorities[1].path)}):
        refused = xpeft("profiles", "list", **env)
        assert refused.returncode == 1
        assert "SSL_CERT_FILE" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_write_over_tls_is_in_the_audit_log_when_the_server_has_ended(
    server: Any, authorities: list[Authority], until: Callable[[Callable[[], bool]], None]
) -> None:
    with httpx.Client(base_url=server.client.base_url, verify=authorities[0].context(), timeout=30) as client:
        assert client.delete("/v1/profiles/nobody").status_code == 401
        answer = client.delete("/v1/profiles/nobody", headers={"authorization": f"Bearer {server.key}"})
    assert answer.status_code == 404

    def entries() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.audit.read_text().splitlines()]

    until(lambda: [(each["key"], each["status"]) for each in entries()] == [(None, 401), ("admin", 404)])
    assert entries()[1]["request_id"] == answer.headers["x-request-id"]
    assert server.key not in server.audit.read_text()
    assert server.audit.stat().st_mode & 0o777 == 0o600


def test_a_server_that_knows_its_clients_serves_nobody_else(strict_server: Any, authorities: list[Authority]) -> None:
    right, wrong = authorities
    assert health(strict_server, right.context(right.ca.issue_cert("client"))) == 200
    for context in (right.context(), right.context(wrong.ca.issue_cert("client"))):
        with pytest.raises((httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)):
            health(strict_server, context)
    assert health(strict_server, right.context(right.ca.issue_cert("client"))) == 200


def test_a_server_whose_redis_wants_a_password_tells_it_to_nobody(
    start_server: Any,
    own_redis: Any,
    project_root: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = re.search(r"^```redis acl\n(.*?)^```", (project_root / "docs" / "security.md").read_text(), re.M | re.S)
    assert found
    with redis.Redis(port=own_redis.port) as admin:
        admin.execute_command(*found[1].replace("PASSWORD", "hush-hush").split())
        server = start_server(own_redis.url.replace("redis://", "redis://xpeft:hush-hush@"), "--log-level", "debug")
        server.wait_until_ready()
        assert server.put("mine", server.profile(1)).status_code == 201
        assert server.classify("mine").status_code == 200
        assert server.client.delete("/v1/profiles/mine").status_code == 204
        # Another password from now on, also for connections that are there.
        admin.execute_command("ACL", "SETUSER", "xpeft", "resetpass", ">another")
        admin.execute_command("CLIENT", "KILL", "USER", "xpeft")
        server.wait_until_ready(status=503)
        told = server.client.get("/ready").text + server.put("mine", server.profile(1)).text
        admin.execute_command("ACL", "SETUSER", "xpeft", ">hush-hush")
        server.wait_until_ready(20)
    assert server.stop() == 0
    logged = "".join(capfd.readouterr())
    assert "invalid username-password pair" in told + logged
    assert "hush-hush" not in told + logged
