"""The options of a client over https: which commands have them, and where they would change nothing."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
import trustme
import typer
from typer.testing import CliRunner

from xpeft_server.cli.main import app
from xpeft_server.settings_source import CLIENT_VARIABLES

CLIENTS = [
    *(f"profiles {command}" for command in ("put", "get", "list", "rm", "import", "export")),
    "tune",
    "bench load",
]


@pytest.mark.parametrize("command", CLIENTS)
def test_every_command_that_is_a_client_has_them_with_variables_that_a_server_leaves_alone(command: str) -> None:
    here = typer.main.get_command(app)
    for word in command.split():
        here = here.commands[word]  # type: ignore[attr-defined]
    variables = {each.opts[0]: each.envvar for each in here.params}
    wanted = {
        "--client-certificate": "XPEFT_CLIENT_CERTIFICATE",
        "--client-key": "XPEFT_CLIENT_KEY",
        "--authority": "XPEFT_AUTHORITY",
    }
    assert wanted.items() <= variables.items()
    assert set(wanted.values()) <= CLIENT_VARIABLES


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text('{"text": "a", "label": "b"}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("profiles list --url http://x", "client_certificate = 'c.pem' is for https, and url is 'http://x'"),
        ("profiles list --url https://x", "client_certificate = 'c.pem' cannot be read: No such file or directory"),
        ("profiles import d.jsonl --url https://x", "client_certificate = 'c.pem' cannot be read"),
        ("profiles import d.jsonl --store sqlite:///s", "--client-certificate is of a server: give --url"),
        ("profiles export e.jsonl --store sqlite:///s", "--client-certificate is of a server: give --url"),
        ("tune --data d.jsonl --out o", "--client-certificate is of a server: give --url"),
        ("tune --data d.jsonl --url https://x --profile p", "client_certificate = 'c.pem' cannot be read"),
        ("bench load", "--client-certificate is of a server that runs already: give its --url, https://…"),
        ("bench load --url http://x:1", "--client-certificate is of a server that runs already"),
        ("bench load --url https://x:1", "client_certificate = 'c.pem' cannot be read"),
    ],
)
def test_where_it_cannot_be_used_it_is_refused_in_one_line(words: str, says: str, somewhere: Path) -> None:
    done = CliRunner().invoke(app, [*words.split(), "--client-certificate", "c.pem"])
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("xpeft: ")
    assert says in last


def test_a_variable_for_servers_does_not_disturb_a_store(somewhere: Path) -> None:
    Path("e.jsonl").touch()
    words = ["profiles", "import", "e.jsonl", "--store", "sqlite:///s"]
    done = CliRunner().invoke(app, words, env={"XPEFT_CLIENT_CERTIFICATE": "c.pem"})
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("shows", "says"),
    [
        (False, "it wants a certificate of its clients: give --client-certificate and --client-key"),
        (True, "it does not know who signed --client-certificate client.pem"),
    ],
)
def test_a_server_that_refuses_with_an_alert_is_understood(shows: bool, says: str, somewhere: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(somewhere / "ca.pem")
    trustme.CA().issue_cert("client").private_key_and_cert_chain_pem.write_to_path(somewhere / "client.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    told = threading.Event()

    def refuse(listening: socket.socket) -> None:
        caller, _ = listening.accept()
        with tls.wrap_socket(caller, server_side=True, do_handshake_on_connect=False) as secured:
            with pytest.raises(ssl.SSLError):
                secured.do_handshake()
            told.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=refuse, args=(listening,))
        thread.start()
        words = [
            "profiles",
            "list",
            "--url",
            f"https://127.0.0.1:{listening.getsockname()[1]}",
            "--authority",
            "ca.pem",
        ]
        done = CliRunner().invoke(app, [*words, *(["--client-certificate", "client.pem"] if shows else [])])
        told.set()
        thread.join()
    assert done.exit_code == 1
    assert done.stderr.startswith("xpeft: https://127.0.0.1:")
    assert f"takes no connection from here: {says}" in done.stderr
