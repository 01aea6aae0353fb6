"""A real server that wants a certificate of its clients, and every command of ours that is one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

ROWS = [(f"w{row % 2 * 10 + row % 7} w{row % 5}", ("no", "yes")[row % 2]) for row in range(20)]
Call = Callable[..., subprocess.CompletedProcess[str]]


class Files:
    """PEM files: of the server, of a client that it knows and of a stranger, and ``clients.pem``, which it knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(folder / "authority.pem")
        self._issue(self.authority, "server", "127.0.0.1", "localhost")
        self.signers = {name: trustme.CA() for name in ("client", "stranger")}
        for name, signer in self.signers.items():
            self._issue(signer, name, name)
        self.know("client")

    def _issue(self, signer: trustme.CA, name: str, *identities: str) -> None:
        issued = signer.issue_cert(*identities)
        issued.private_key_pem.write_to_path(self.folder / f"{name}.key")
        for part in issued.cert_chain_pems:
            part.write_to_path(self.folder / f"{name}.pem", append=True)

    def know(self, *names: str) -> None:
        """Have ``clients.pem`` name the authorities of these."""
        new = self.folder / "new"
        new.write_bytes(b"".join(self.signers[name].cert_pem.bytes() for name in names))
        new.replace(self.folder / "clients.pem")

    def options(self, name: str) -> list[str]:
        """Of a client."""
        at = f"{self.folder}/{name}"
        return [
            "--authority",
            f"{self.folder}/authority.pem",
            "--client-certificate",
            f"{at}.pem",
            "--client-key",
            f"{at}.key",
        ]

    def serve(self, start: Any) -> Iterator[Any]:
        at = f"{self.folder}/server"
        options = ["--tls-certificate", f"{at}.pem", "--tls-key", f"{at}.key"]
        server = start("memory://", *options, "--tls-client-ca", f"{self.folder}/clients.pem")
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(server_starter: Any, files: Files) -> Iterator[Any]:
    yield from files.serve(server_starter)


def xpeft_of(server: Any, programs: Path) -> Call:
    """The command line as a client of a server."""
    program = str(programs / "xpeft")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SSL_CERT", "XPEFT"))}

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *words, "--url", server.address],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def xpeft(server: Any, warm_programs: Path) -> Call:
    return xpeft_of(server, warm_programs)


def test_profiles_are_tuned_listed_moved_and_removed(
    xpeft: Call, files: Files, tiny_bert: Path, tmp_path: Path
) -> None:
    known = files.options("client")
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
    )
    model = ["--plm", str(tiny_bert), "--bank", "random:N=12,R=8,seed=1,std=0.3", "--epochs", "1"]
    steps = [
        (["tune", "--data", f"{tmp_path}/d.jsonl", *model, "--profile", "desk"], "created desk sha256:"),
        (["profiles", "get", "desk", "--out", f"{tmp_path}/desk.safetensors"], "wrote "),
        (["profiles", "put", "copy", f"{tmp_path}/desk.safetensors"], "created copy sha256:"),
        (["profiles", "list"], "2 profiles"),
        (["profiles", "export", f"{tmp_path}/all.jsonl"], ": 2 profiles ("),
        (["profiles", "rm", "copy"], "removed copy"),
        (["profiles", "import", f"{tmp_path}/all.jsonl"], "1 created, 0 replaced, 1 identical, 0 refused"),
    ]
    for words, said in steps:
        done = xpeft(*words, *known)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout.splitlines()[-1]


def test_the_load_of_a_benchmark_is_sent_with_the_certificate_too(xpeft: Call, files: Files, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in ROWS))
    sizes = {"--rates": "60", "--seconds": "0.5", "--rounds": "1", "--profiles": "2", "--texts": "4", "--slo": "60s"}
    words = ["bench", "load", *(word for size in sizes.items() for word in size)]
    done = xpeft(*words, "--data", f"{tmp_path}/d.jsonl", "--json", f"{tmp_path}/load.jsonl", *files.options("client"))
    assert done.returncode == 0, done.stderr
    lines = {line["variant"]: line for line in map(json.loads, (tmp_path / "load.jsonl").read_text().splitlines())}
    (measured,) = [line["details"] for variant, line in lines.items() if variant.endswith(" 60/s")]
    assert measured["requests"] == 30
    refused = xpeft(*words, "--data", f"{tmp_path}/d.jsonl", *files.options("stranger"))
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("xpeft: GET /info: ")


def test_variables_name_the_files_as_well(xpeft: Call, files: Files) -> None:
    words = files.options("client")
    variables = {
        f"XPEFT_{option[2:].replace('-', '_').upper()}": file
        for option, file in zip(words[::2], words[1::2], strict=True)
    }
    done = xpeft("profiles", "list", **variables)
    assert (done.returncode, done.stderr) == (0, "")


def test_who_shows_none_or_a_strangers_is_told_in_one_line(xpeft: Call, files: Files) -> None:
    for options, said in (
        (files.options("client")[:2], "it wants a certificate of its clients: give --client-certificate and"),
        (files.options("stranger"), f"it does not know who signed --client-certificate {files.folder}/stranger.pem"),
        (files.options("client")[2:], "its certificate is not trusted"),
    ):
        done = xpeft("profiles", "list", *options)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert said in line


def test_new_authorities_of_clients_need_no_restart(
    server_starter: Any, warm_programs: Path, tmp_path: Path, until: Callable[[Callable[[], bool]], None]
) -> None:
    files = Files(tmp_path)
    for server in files.serve(server_starter):
        xpeft = xpeft_of(server, warm_programs)

        def is_served(name: str, xpeft: Call = xpeft) -> bool:
            return xpeft("profiles", "list", *files.options(name)).returncode == 0

        assert is_served("client")
        assert not is_served("stranger")
        files.know("stranger")
        until(lambda: is_served("stranger"))
        assert not is_served("client")
