"""The files of the TLS settings: what is refused at the start, by name."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess

import pytest
import trustme
from cryptography import x509
from typer.testing import CliRunner

from xpeft_server.cli.main import app
from xpeft_server.cli.serve.tls import server_tls
from xpeft_server.pem_files import PemInvalid
from xpeft_server.settings import Settings, SettingsInvalid


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A server's certificate and key, those of another, an authority, an encrypted key, and what is none."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("server", "other"):
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for part in issued.cert_chain_pems:
            part.write_to_path(folder / f"{name}.pem", append=True)
    (folder / "rubbish.pem").write_text("no certificate")
    encrypt = ["openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", folder / "server.key"]
    subprocess.run([*encrypt, "-out", folder / "encrypted.key"], check=True)
    return folder


def settings_of(files, **names):
    return Settings(**{f"tls_{name}": None if file is None else files / file for name, file in names.items()})


def test_without_a_certificate_nothing_is_secured():
    assert server_tls(Settings()) is None


def context_of_a_connection(settings):
    return server_tls(settings).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True).context


def test_a_certificate_makes_connections_of_tls_1_2_that_ask_for_no_client(files):
    context = context_of_a_connection(settings_of(files, certificate="server.pem", key="server.key"))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE


def test_an_authority_of_clients_makes_their_certificates_needed(files):
    context = context_of_a_connection(
        settings_of(files, certificate="server.pem", key="server.key", client_ca="ca.pem")
    )
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"certificate": "nowhere.pem", "key": "server.key"}, ["tls_certificate = ", "nowhere.pem", "No such file"]),
        ({"certificate": "server.pem", "key": "nowhere.key"}, ["tls_key = ", "nowhere.key", "No such file"]),
        ({"certificate": "server.pem", "key": "other.key"}, ["server.pem", "other.key", "key values mismatch"]),
        ({"certificate": "rubbish.pem", "key": "server.key"}, ["rubbish.pem", "server.key"]),
        ({"certificate": "server.pem", "key": "rubbish.pem"}, ["server.pem", "rubbish.pem"]),
        ({"certificate": "server.pem", "key": "encrypted.key"}, ["encrypted.key"]),
        (
            {"certificate": "server.pem", "key": "server.key", "client_ca": "rubbish.pem"},
            ["tls_client_ca = ", "rubbish.pem", "no certificate or crl found"],
        ),
        ({"certificate": "server.pem", "key": "server.key", "client_ca": "nowhere.pem"}, ["tls_client_ca = "]),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(files, names, words):
    with pytest.raises(SettingsInvalid) as refused:
        server_tls(settings_of(files, **names))
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("given", "missing"),
    [("certificate", "tls_key"), ("key", "tls_certificate"), ("client-ca", "tls_certificate")],
)
def test_one_without_the_other_is_refused_at_the_start(files, given, missing):
    refused = CliRunner().invoke(app, ["serve", "--store", "memory://", f"--tls-{given}", str(files / "server.pem")])
    assert refused.exit_code == 2
    assert f"tls_{given.replace('-', '_')} = '{files}/server.pem' needs {missing}" in refused.stderr


def test_the_start_is_refused_with_the_file_that_cannot_be_used(files):
    arguments = ["--tls-certificate", str(files / "server.pem"), "--tls-key", str(files / "other.key")]
    refused = CliRunner().invoke(app, ["serve", "--store", "memory://", *arguments])
    assert refused.exit_code == 2
    assert "key values mismatch" in refused.stderr
    assert "Traceback" not in refused.output


def test_an_audit_log_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    refused = CliRunner().invoke(app, ["serve", "--store", "memory://", "--audit-log", str(tmp_path / "no" / "file")])
    assert refused.exit_code == 2
    assert f"audit_log = '{tmp_path}/no/file' cannot be written: No such file or directory" in refused.stderr


def handshake(tls, asking, session=None):
    """The client's side of a connection in memory. Raises: SSLError if one side refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = tls.wrap_bio(to_server, to_client, server_side=True)
    client = asking.wrap_bio(to_client, to_server, session=session)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.read()  # what the server said last, like the ticket of a session
    return client


def client_context():
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
    return asking


def serial_shown(tls):
    """Of the certificate that a client is shown."""
    shown = handshake(tls, client_context()).getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(shown).serial_number


@pytest.fixture
def renewed(files, tmp_path):
    """Files as a server has them, and what it secures connections with."""
    for end in ("pem", "key"):
        shutil.copy(files / f"server.{end}", tmp_path / f"now.{end}")
    return tmp_path, server_tls(Settings(tls_certificate=tmp_path / "now.pem", tls_key=tmp_path / "now.key"))


def put(files, folder, name, *ends):
    for end in ends:
        shutil.copy(files / f"{name}.{end}", folder / f"new.{end}")
        (folder / f"new.{end}").replace(folder / f"now.{end}")


def test_a_renewed_certificate_is_shown_without_a_restart(files, renewed):
    folder, tls = renewed
    before = serial_shown(tls)
    tls.file.refresh()
    assert serial_shown(tls) == before
    put(files, folder, "other", "pem", "key")
    tls.file.refresh()
    assert serial_shown(tls) != before


def test_half_of_a_renewed_pair_changes_nothing_and_is_told_once(files, renewed, caplog):
    folder, tls = renewed
    before = serial_shown(tls)
    put(files, folder, "other", "pem")
    tls.file.refresh()
    tls.file.refresh()
    assert serial_shown(tls) == before
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "key values mismatch" in caplog.text
    put(files, folder, "other", "key")
    tls.file.refresh()
    assert serial_shown(tls) != before


def test_files_that_are_gone_change_nothing(files, renewed):
    folder, tls = renewed
    before = serial_shown(tls)
    (folder / "now.key").unlink()
    tls.file.refresh()
    assert serial_shown(tls) == before
    put(files, folder, "other", "pem", "key")
    tls.file.refresh()
    assert serial_shown(tls) != before


def test_a_pair_that_could_not_be_read_for_a_moment_is_read_at_the_next_look(files, renewed, caplog, monkeypatch):
    folder, tls = renewed
    before = serial_shown(tls)
    put(files, folder, "other", "pem", "key")

    def no_file_is_free(*_):
        raise PemInvalid("tls_key cannot be read: Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("xpeft_server.cli.serve.tls.load_certificate", no_file_is_free)
        tls.file.refresh()
        tls.file.refresh()
    assert serial_shown(tls) == before
    assert caplog.text.count("Too many open files") == 1
    tls.file.refresh()
    assert serial_shown(tls) != before


class Clients:
    """Of two authorities, of which a server knows those in ``known``."""

    def __init__(self, files, folder):
        self.known = folder / "clients.pem"
        self._authorities = [trustme.CA(), trustme.CA()]
        self.contexts = [self._context(each) for each in self._authorities]
        self.know(0)
        names = {"certificate": files / "server.pem", "key": files / "server.key", "client_ca": self.known}
        self.tls = server_tls(Settings(**{f"tls_{name}": file for name, file in names.items()}))

    @staticmethod
    def _context(authority):
        context = client_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # in which a client knows when its handshake is over
        authority.issue_cert("client").configure_cert(context)
        return context

    def know(self, *numbers):
        new = self.known.with_name("new")
        new.write_bytes(b"".join(self._authorities[number].cert_pem.bytes() for number in numbers))
        new.replace(self.known)

    def taken(self):
        """Which of them the server lets in."""
        return [number for number, context in enumerate(self.contexts) if self._is_taken(context)]

    def _is_taken(self, context):
        try:
            handshake(self.tls, context)
        except ssl.SSLCertVerificationError:
            return False
        return True


def test_new_authorities_of_clients_count_and_old_ones_do_not_without_a_restart(files, tmp_path):
    clients = Clients(files, tmp_path)
    assert clients.taken() == [0]
    clients.know(0, 1)
    assert clients.taken() == [0]
    clients.tls.file.refresh()
    assert clients.taken() == [0, 1]
    clients.know(1)
    clients.tls.file.refresh()
    assert clients.taken() == [1]


def test_authorities_that_cannot_be_read_change_nothing_and_are_told_once(files, tmp_path, caplog):
    clients = Clients(files, tmp_path)
    for broken in (lambda: clients.known.write_text("no certificate"), clients.known.unlink):
        caplog.clear()
        broken()
        clients.tls.file.refresh()
        clients.tls.file.refresh()
        assert clients.taken() == [0]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "tls_client_ca = " in caplog.text
    clients.know(1)
    clients.tls.file.refresh()
    assert clients.taken() == [1]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_outlives_the_authority_that_let_it_begin(files, tmp_path, version):
    clients = Clients(files, tmp_path)
    asking = clients.contexts[0]
    asking.maximum_version = version
    session = handshake(clients.tls, asking).session
    assert handshake(clients.tls, asking, session).session_reused
    clients.know(1)
    clients.tls.file.refresh()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(clients.tls, asking, session)
