"""``xpeft profiles import`` and ``export`` through a whole server process, whose engine only has a geometry."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from xpeft_profiles import Profile, read_profile_file, write_profile_file
from xpeft_server.cli.keys.commands import app as keys_app
from xpeft_server.cli.profiles import kept_client as profiles_kept_client
from xpeft_server.cli.profiles.commands import app
from xpeft_server.cli.profiles.kept_client import KeptProfilesClient
from xpeft_server.cli.tune.sinks import ServerSink, SinkFailed

pytestmark = pytest.mark.usefixtures("no_progress")

BANK = "sha256:" + "ab" * 32
SERVER = """
import sys, types
# Nothing then loads PyTorch, which takes longer than all that a test does.
for module, name in (("xpeft_server.engine.engine", "Engine"), ("xpeft_server.cli.serve.assembly", "build_engine")):
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], name, None)
from xpeft_profiles import BankGeometry
from xpeft_server.cli import main
from xpeft_server.cli.serve import running_server
from xpeft_server.engine.requests import EngineInfo, EngineStatus

class Engine:
    geometry = BankGeometry("sha256:" + "ab" * 32, 2, 16, 8, 4)
    info = EngineInfo("tiny", "bert", "cpu", "float32", {}, False, 512, 8, 1024, 64, 4096, 4)

    def __init__(self, store):
        self.store = store

    async def start(self):
        await self.store.open()

    def status(self):
        return EngineStatus(True, {"engine": "ok"})

    async def close(self):
        pass

running_server.build_engine = lambda settings, store, *rest, **options: Engine(store)
main.app()
"""


def profile(seed: int = 0, *, bank: str = BANK) -> Profile:
    rng = np.random.default_rng(seed)
    masks = rng.permuted(np.tile(np.arange(16) < 4, (4, 1)), axis=1)
    return Profile(bank=bank, mask_a=masks[:2], mask_b=masks[2:])


def line(name: str, file: bytes | Profile, **words: str) -> str:
    data = write_profile_file(file) if isinstance(file, Profile) else file
    return json.dumps({**words, "name": name, "file": b64encode(data).decode()})


class Server:
    def __init__(self, folder: Path) -> None:
        keys = folder / "keys.json"
        self.path = folder / "p.db"
        self.keys = {tenant: self._key(keys, tenant, "admin") for tenant in ("acme", "zeta")}
        self.reader = self._key(keys, "acme", "infer")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XPEFT_")}
        command = [sys.executable, "-c", SERVER, "serve", "--port", "0", "--store", f"sqlite:///{self.path}"]
        self.process = subprocess.Popen(
            [*command, "--api-keys", str(keys)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.url = re.findall(r"http://\S+", self.process.stdout.readline())[0]

    @staticmethod
    def _key(path: Path, tenant: str, role: str) -> str:
        arguments = ["create", "--tenant", tenant, "--role", role, "--file", str(path)]
        return CliRunner().invoke(keys_app, arguments).stdout.strip()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def call(server: Server) -> Callable[..., Result]:
    def run(command: str, *arguments: object, tenant: str = "acme", key: str | None = None) -> Result:
        env = {"XPEFT_URL": server.url, "XPEFT_API_KEY": key or server.keys[tenant], "XPEFT_STORE": None}
        return CliRunner().invoke(app, [command, *map(str, arguments)], env=env)

    return run


Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def empty(server: Server) -> None:
    """No profile of an earlier test."""
    for key in server.keys.values():
        with closing(KeptProfilesClient(server.url, key)) as client:
            for each in list(client.list(prefix="", limit=None)):
                client.delete(each["name"], if_match=None)


def test_an_import_is_there_and_the_second_finds_it(call: Call, jsonl: Any) -> None:
    source = jsonl(*(line(f"p{n:03}", profile(n)) for n in range(60)))
    dry = call("import", source, "--dry-run")
    assert dry.stdout.startswith("would be: 60 created, 0 replaced, 0 identical"), dry.stderr
    assert call("list").stdout.splitlines()[-1] == "0 profiles"
    done = call("import", source)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("60 created, 0 replaced, 0 identical, 0 refused")
    assert call("import", source).stdout.startswith("0 created, 0 replaced, 60 identical, 0 refused")
    assert call("list").stdout.splitlines()[-1] == "60 profiles"
    assert call("list", tenant="zeta").stdout.splitlines()[-1] == "0 profiles"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_other_versions_are_replaced_or_kept(call: Call, jsonl: Any, dry: list[str]) -> None:
    call("import", jsonl(line("a", profile(1)), line("b", profile(2))))
    changed = jsonl(line("a", profile(1)), line("b", profile(3)), line("c", profile(4)))
    kept = call("import", changed, "--keep-existing", *dry).stdout
    assert kept.removeprefix("would be: ").startswith("1 created, 0 replaced, 1 identical, 1 kept, 0 refused")
    assert json.loads(call("get", "b", "--json").stdout)["version"] == profile(2).version
    call("rm", "c")
    replaced = call("import", changed, *dry).stdout
    assert replaced.removeprefix("would be: ").startswith("1 created, 1 replaced, 1 identical, 0 refused")
    expected = profile(2 if dry else 3).version
    assert json.loads(call("get", "b", "--json").stdout)["version"] == expected


def test_a_backup_heals_what_is_damaged(call: Call, jsonl: Any, server: Server) -> None:
    source = jsonl(line("a", profile(1)), line("b", profile(2)))
    call("import", source)
    with closing(sqlite3.connect(server.path)) as connection, connection:
        (record,) = connection.execute("SELECT record FROM profiles WHERE name = 'a'").fetchone()
        record = record[:-9] + bytes([record[-9] ^ 1]) + record[-8:]
        connection.execute("UPDATE profiles SET record = ? WHERE name = 'a'", (record,))
    assert "damaged_profile" in call("get", "a").stderr
    for arguments, said in (
        (["--keep-existing"], "0 created, 0 replaced, 1 identical, 1 kept"),
        (["--dry-run"], "would be: 0 created, 1 replaced, 1 identical"),
        ([], "0 created, 1 replaced, 1 identical"),
        ([], "0 created, 0 replaced, 2 identical"),
    ):
        assert call("import", source, *arguments).stdout.startswith(said)
    assert json.loads(call("get", "a", "--json").stdout)["version"] == profile(1).version


def test_what_the_server_has_against_one_profile_stops_no_other(call: Call, jsonl: Any) -> None:
    source = jsonl(
        line("a", profile(1)),
        line("foreign", profile(2, bank="sha256:" + "cd" * 32)),
        line("base", profile(3)),
        line("owned", profile(4), tenant="acme"),
        line("bad", b"nothing"),
        line("z", profile(5)),
    )
    done = call("import", source)
    assert done.exit_code == 1
    assert done.stdout.startswith("2 created, 0 replaced, 0 identical, 4 refused")
    shown = {each.split(":")[1]: each for each in done.stderr.splitlines() if each.startswith("refused ")}
    assert "the profile was made for bank" in shown["2"]
    assert "base" in shown["3"]
    assert "the key says whose profiles these are: an export with --tenant names none" in shown["4"]
    assert "is not a safetensors file" in shown["5"]


def test_a_dry_run_refuses_what_the_server_would_refuse_for_its_bank(call: Call, jsonl: Any) -> None:
    source = jsonl(
        line("a", profile(1)), line("foreign", profile(2, bank="sha256:" + "cd" * 32)), line("z", profile(3))
    )
    dry, done = call("import", source, "--dry-run"), call("import", source)
    assert dry.stdout.startswith("would be: 2 created, 0 replaced, 0 identical, 1 refused")
    assert done.stdout.startswith("2 created, 0 replaced, 0 identical, 1 refused")
    assert dry.stderr == done.stderr
    assert dry.stderr.startswith("refused p.jsonl:2: the profile was made for bank 'sha256:cdcd")


def test_a_dry_run_asks_for_the_bank_once(call: Call, jsonl: Any, script: Script) -> None:
    script.answers = [
        (200, {}, json.dumps({"bank": {"fingerprint": BANK}}).encode()),
        *[(404, {}, refusal("profile_not_found"))] * 600,
    ]
    source = jsonl(*(line(f"p{n:03}", profile(n)) for n in range(600)))
    assert call("import", source, "--dry-run", "--url", address(script)).stdout.startswith("would be: 600 created")
    assert [path for path, _ in script.requests].count("/info") == 1


def test_a_key_that_may_not_ends_the_import(call: Call, jsonl: Any, server: Server) -> None:
    source = jsonl(*(line(f"p{n}", profile(n)) for n in range(600)))
    done = call("import", source, key=server.reader)
    assert done.exit_code == 1
    assert done.stderr.startswith("xpeft: 403 Forbidden")
    assert len(done.stderr.splitlines()) == 1
    assert "401 Unauthorized" in call("import", source, key="xp_wrong").stderr


def test_a_tune_asks_for_the_bank_and_for_the_right_to_write_and_leaves_nothing(call: Call, server: Server) -> None:
    assert ServerSink(server.url, server.keys["acme"]).bank == BANK
    assert call("list").stdout.splitlines()[-1] == "0 profiles"
    for key, said in ((server.reader, "403 Forbidden"), ("xp_wrong", "401 Unauthorized"), (None, "401 Unauthorized")):
        with pytest.raises(SinkFailed, match=said):
            ServerSink(server.url, key)


def test_a_server_that_is_gone_ends_the_import(call: Call, jsonl: Any) -> None:
    done = call("import", jsonl(line("a", profile())), "--url", "http://127.0.0.1:9")
    assert done.exit_code == 1
    assert "nothing listens at http://127.0.0.1:9" in done.stderr


@pytest.mark.parametrize("name", ["profiles", "p.tar.gz", "p.jsonl"])
def test_an_export_has_the_tenants_profiles_and_is_imported_again(
    call: Call, jsonl: Any, tmp_path: Path, name: str
) -> None:
    call("import", jsonl(*(line(f"p{n:03}", profile(n)) for n in range(60))))
    call("import", jsonl(line("other", profile(1))), tenant="zeta")
    out = tmp_path / "out"
    out.mkdir()
    done = call("export", out / name)
    assert (done.exit_code, done.stderr) == (0, "")
    assert ": 60 profiles (" in done.stdout
    assert call("import", out / name).stdout.startswith("0 created, 0 replaced, 60 identical, 0 refused")
    if name == "profiles":
        files = sorted((out / name).iterdir())
        assert [file.name for file in files[:2]] == ["p000.safetensors", "p001.safetensors"]
        assert read_profile_file(files[7].read_bytes()).version == profile(7).version


class Script(ThreadingHTTPServer):
    """A server that answers what a test tells it, and counts connections."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Scripted)
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        self.hang_up_after = 1_000_000
        self.lock = threading.Lock()


class Scripted(BaseHTTPRequestHandler):
    server: Script
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.served = 0
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.served >= self.server.hang_up_after:
            # As a server does that has closed an idle connection: without an answer.
            self.close_connection = True
            return
        self.served += 1
        with self.server.lock:
            self.server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            status, headers, body = self.server.answers.pop(0) if self.server.answers else (201, {}, b"{}")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET = answer  # noqa: N815


@pytest.fixture
def script() -> Iterator[Script]:
    with Script() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(script: Script) -> str:
    return f"http://127.0.0.1:{script.server_port}"


def refusal(code: str) -> bytes:
    return json.dumps({"error": {"message": "not now", "code": code}}).encode()


def test_connections_are_few_and_kept(call: Call, jsonl: Any, script: Script) -> None:
    source = jsonl(*(line(f"p{n:03}", profile(n)) for n in range(100)))
    done = call("import", source, "--url", address(script))
    assert done.stdout.startswith("100 created")
    assert len(script.requests) == 100
    assert script.connections <= 8
    assert script.requests[0][1]["if-none-match"].startswith('"sha256:')


def test_a_connection_that_the_server_closed_is_opened_again(call: Call, jsonl: Any, script: Script) -> None:
    script.hang_up_after = 5
    source = jsonl(*(line(f"p{n:03}", profile(n)) for n in range(100)))
    assert call("import", source, "--url", address(script)).stdout.startswith("100 created")
    assert sorted(path for path, _ in script.requests) == [f"/v1/profiles/p{n:03}" for n in range(100)]


def test_a_server_that_is_busy_is_asked_again_when_it_says(
    call: Call, jsonl: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(profiles_kept_client.time, "sleep", waits.append)
    script.answers = [
        (429, {"Retry-After": "3"}, refusal("overloaded")),
        (503, {"Retry-After": "500"}, refusal("store_unavailable")),
        (503, {}, refusal("unavailable")),
    ]
    assert call("import", jsonl(line("a", profile())), "--url", address(script)).stdout.startswith("1 created")
    assert waits == [3.0, 30.0, 1.0]
    script.answers = [(503, {"Retry-After": "2"}, refusal("store_unavailable"))] * 6
    done = call("import", jsonl(line("a", profile())), "--url", address(script))
    assert done.exit_code == 1
    assert "503 Service Unavailable (store_unavailable): not now" in done.stderr
    assert waits[3:] == [2.0] * 5


def test_a_tuned_profile_waits_for_a_server_that_is_busy_and_the_next_comes_over_the_same_connection(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(profiles_kept_client.time, "sleep", waits.append)
    info = json.dumps({"bank": {"fingerprint": BANK}}).encode()
    busy = (503, {"Retry-After": "2"}, refusal("unavailable"))
    script.answers = [(200, {}, info), (422, {}, refusal("reserved_name")), busy]
    with closing(ServerSink(address(script), None)) as sink:
        asked = script.connections
        assert [sink.put(name, profile()) for name in ("ann", "bob")] == ["created ann", "created bob"]
    assert waits == [2.0]
    assert script.connections == asked + 1


def test_a_tenant_that_is_full_is_not_asked_again(
    call: Call, jsonl: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles_kept_client.time, "sleep", lambda _: pytest.fail("waited"))
    script.answers = [(429, {"Retry-After": "10"}, refusal("too_many_profiles"))]
    done = call("import", jsonl(line("a", profile())), "--url", address(script))
    assert done.stderr.splitlines() == ["refused p.jsonl:1: not now", "xpeft: 1 of 1 entries were refused"]


def test_a_profile_that_another_created_meanwhile_is_kept(call: Call, jsonl: Any, script: Script) -> None:
    for there, said in ((profile(1).version, "1 identical"), (profile(2).version, "1 kept")):
        script.answers = [
            (412, {}, refusal("precondition_failed")),
            (200, {}, json.dumps({"version": there}).encode()),
        ]
        source = jsonl(line("a", profile(1)))
        assert said in call("import", source, "--url", address(script), "--keep-existing").stdout
        assert script.requests[-2][1]["if-none-match"] == "*"


def test_an_export_leaves_out_what_is_gone_and_names_what_is_damaged(
    call: Call, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xpeft_server.cli.profiles.pool.CONNECTIONS", 1)
    names = [{"name": name, "updated": 1} for name in ("a", "b", "c")]
    file = write_profile_file(profile())
    script.answers = [
        (200, {}, json.dumps({"data": names, "next_cursor": None}).encode()),
        (404, {}, refusal("profile_not_found")),
        (500, {}, refusal("damaged_profile")),
        (200, {"Content-Type": "application/octet-stream"}, file),
    ]
    done = call("export", tmp_path / "p.jsonl", "--url", address(script))
    assert done.exit_code == 1
    assert [each.split(":")[0] for each in done.stderr.splitlines()] == ["refused b", "xpeft"]
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 1
    script.answers = [
        (200, {}, json.dumps({"data": names, "next_cursor": None}).encode()),
        *[(500, {}, refusal("internal_error"))] * 3,
    ]
    done = call("export", tmp_path / "q.jsonl", "--url", address(script))
    assert "500 Internal Server Error (internal_error): not now; nothing was written" in done.stderr
    assert not (tmp_path / "q.jsonl").exists()
    script.answers = [(200, {}, json.dumps({"data": [], "next_cursor": None}).encode())]
    done = call("export", tmp_path / "r.jsonl", "--url", address(script))
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"there are no profiles in {address(script)}; nothing was written" in done.stderr
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize("target", ["out/profiles", "out/p.tar"])
def test_what_a_server_calls_by_no_name_is_neither_asked_for_nor_written(
    call: Call, script: Script, tmp_path: Path, target: str
) -> None:
    (tmp_path / "out").mkdir()
    names = [{"name": name, "updated": 1} for name in ("../../up", f"{tmp_path}/absolute", "a")]
    file = {"Content-Type": "application/octet-stream"}, write_profile_file(profile())
    script.answers = [(200, {}, json.dumps({"data": names, "next_cursor": None}).encode()), (200, *file)]
    done = call("export", tmp_path / target, "--url", address(script))
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == (
        "refused ../../up: name: '../../up' is not a name (a letter or digit, then up to 127 of A-Z a-z 0-9 . _ -)"
    )
    assert done.stderr.splitlines()[-1] == "xpeft: 2 profiles were left out"
    assert [path for path, _ in script.requests[1:]] == ["/v1/profiles/a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert call("import", tmp_path / target, "--url", address(script)).stdout.startswith("1 created")
