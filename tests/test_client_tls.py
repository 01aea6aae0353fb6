"""The files of a client over https: what is refused, by name."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from xpeft_server.client_tls import NO_FILES, ClientTls
from xpeft_server.pem_files import PemInvalid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client's certificate and key, in two files and in one, those of another, an authority, and what is none."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("client", "other"):
        issued = authority.issue_cert(name)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        issued.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.both")
    (folder / "rubbish.pem").write_text("no certificate")
    return folder


def tls_of(folder: Path, **names: str) -> ClientTls:
    return ClientTls(**{field: folder / name for field, name in names.items()})


def test_without_files_the_system_is_trusted_as_python_does() -> None:
    context = NO_FILES.context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.cert_store_stats() == ssl.create_default_context().cert_store_stats()


def test_an_authority_is_trusted_in_place_of_the_systems(folder: Path) -> None:
    context = tls_of(folder, authority="ca.pem").context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize(
    "files", [{"client_certificate": "client.pem", "client_key": "client.key"}, {"client_certificate": "client.both"}]
)
def test_a_key_lies_in_its_own_file_or_with_its_certificate(folder: Path, files: dict[str, str]) -> None:
    assert tls_of(folder, **files).context().verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"authority": "nowhere.pem"}, ["authority = ", "nowhere.pem", "No such file"]),
        ({"authority": "rubbish.pem"}, ["authority = ", "rubbish.pem", "no certificate or crl found"]),
        ({"client_certificate": "nowhere.pem"}, ["client_certificate = ", "nowhere.pem", "No such file"]),
        ({"client_certificate": "client.pem"}, ["client_certificate = ", "client.pem"]),
        ({"client_key": "client.key"}, ["client_key = ", "client.key", "without a client_certificate"]),
        (
            {"client_certificate": "client.pem", "client_key": "nowhere.key"},
            ["client_key = ", "nowhere.key", "No such file"],
        ),
        (
            {"client_certificate": "client.pem", "client_key": "other.key"},
            ["client_certificate = ", "client_key = ", "other.key", "key values mismatch"],
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(folder: Path, files: dict[str, str], words: list[str]) -> None:
    with pytest.raises(PemInvalid) as refused:
        tls_of(folder, **files).context()
    for word in words:
        assert word in str(refused.value)
