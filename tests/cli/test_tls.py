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
from xpeft_server.cli.tls import certificate_files, tls_context
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
    assert tls_context(Settings()) is None


def test_a_certificate_makes_a_context_of_tls_1_2_that_asks_for_no_client(files):
    context = tls_context(settings_of(files, certificate="server.pem", key="server.key"))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE


def test_an_authority_of_clients_makes_their_certificates_needed(files):
    context = tls_context(settings_of(files, certificate="server.pem", key="server.key", client_ca="ca.pem"))
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
        tls_context(settings_of(files, **names))
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


def serial_shown(context):
    """Of the certificate that a client is shown, in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
    client = asking.wrap_bio(to_client, to_server)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return x509.load_der_x509_certificate(client.getpeercert(binary_form=True)).serial_number


@pytest.fixture
def renewed(files, tmp_path):
    """Files as a server has them, their context, and what takes new ones."""
    for end in ("pem", "key"):
        shutil.copy(files / f"server.{end}", tmp_path / f"now.{end}")
    settings = Settings(tls_certificate=tmp_path / "now.pem", tls_key=tmp_path / "now.key")
    context = tls_context(settings)
    return tmp_path, context, certificate_files(settings, context)


def put(files, folder, name, *ends):
    for end in ends:
        shutil.copy(files / f"{name}.{end}", folder / f"new.{end}")
        (folder / f"new.{end}").replace(folder / f"now.{end}")


def test_a_renewed_certificate_is_shown_without_a_restart(files, renewed):
    folder, context, watched = renewed
    before = serial_shown(context)
    watched.refresh()
    assert serial_shown(context) == before
    put(files, folder, "other", "pem", "key")
    watched.refresh()
    assert serial_shown(context) != before


def test_half_of_a_renewed_pair_changes_nothing_and_is_told_once(files, renewed, caplog):
    folder, context, watched = renewed
    before = serial_shown(context)
    put(files, folder, "other", "pem")
    watched.refresh()
    watched.refresh()
    assert serial_shown(context) == before
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "key values mismatch" in caplog.text
    put(files, folder, "other", "key")
    watched.refresh()
    assert serial_shown(context) != before


def test_files_that_are_gone_change_nothing(files, renewed):
    folder, context, watched = renewed
    before = serial_shown(context)
    (folder / "now.key").unlink()
    watched.refresh()
    assert serial_shown(context) == before
    put(files, folder, "other", "pem", "key")
    watched.refresh()
    assert serial_shown(context) != before


def test_without_tls_there_is_nothing_to_watch():
    assert certificate_files(Settings(), None) is None
