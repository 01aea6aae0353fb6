from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner, Result

from xpeft_server.cli.profiles import client as profiles_client
from xpeft_server.cli.profiles.commands import app

runner = CliRunner()
FILE_TYPE = "application/octet-stream"


def version_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class TinyServer(HTTPServer):
    """The profile routes over a dictionary, or one answer that a test wants to see handled."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.profiles: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.page = 1000
        self.scripted: Callable[[Handler], None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of a test."""


class Handler(BaseHTTPRequestHandler):
    server: TinyServer
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, status: int, value: object, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), **{"Content-Type": "application/json", **headers})

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        error = {"message": message, "type": "t", "param": None, "code": code}
        self.answer_json(status, {"error": error}, **headers)

    def log_message(self, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        self.server.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.close_connection = True
        if self.server.scripted is not None:
            self.server.scripted(self)
            return
        parts = urlsplit(self.path)
        name = parts.path.removeprefix("/v1/profiles").removeprefix("/")
        if name:
            self.one(name)
        else:
            self.listing({key: values[0] for key, values in parse_qs(parts.query).items()})

    def one(self, name: str) -> None:
        profiles = self.server.profiles
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "PUT":
            if self.headers.get("If-None-Match") == "*" and name in profiles:
                self.refuse(412, "precondition_failed", f"profile {name!r} exists")
                return
            status = 200 if name in profiles else 201
            profiles[name] = body
            self.answer_json(status, {"name": name}, ETag=f'"{version_of(body)}"')
        elif name not in profiles:
            self.refuse(404, "profile_not_found", f"there is no profile {name!r}", x_request_id="r-1")
        elif self.command == "DELETE":
            del profiles[name]
            self.answer(204)
        elif self.headers.get("Accept") == FILE_TYPE:
            self.answer(200, profiles[name], Content_Type=FILE_TYPE)
        else:
            self.answer_json(200, self.entry(name))

    def entry(self, name: str) -> dict[str, Any]:
        data = self.server.profiles[name]
        return {
            "name": name,
            "version": version_of(data),
            "labels": ["good", "b\x1b[31mad"],
            "bytes": len(data),
            "created": 0,
            "updated": 86400.5,
        }

    def listing(self, query: dict[str, str]) -> None:
        names = sorted(name for name in self.server.profiles if name.startswith(query.get("prefix", "")))
        names = [name for name in names if name > query.get("cursor", "")]
        page = names[: min(int(query["limit"]), self.server.page)]
        following = page[-1] if len(page) < len(names) else None
        data = [self.entry(name) for name in page]
        self.answer_json(200, {"object": "list", "data": data, "next_cursor": following})


@pytest.fixture
def server() -> Iterator[TinyServer]:
    with TinyServer() as tiny:
        thread = threading.Thread(target=tiny.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield tiny
        tiny.shutdown()
        thread.join()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "alice.safetensors"
    path.write_bytes(b"\x00a profile's bytes\xff")
    return path


@pytest.fixture
def xpeft(server: TinyServer) -> Callable[..., Result]:
    def call(*arguments: str, key: str = "xp_secret") -> Result:
        return runner.invoke(app, list(arguments), env={"XPEFT_URL": server.url, "XPEFT_API_KEY": key})

    return call


Call = Callable[..., Result]


def test_put_uploads_the_bytes_of_the_file_with_the_tenants_key(xpeft: Call, server: TinyServer, file: Path) -> None:
    result = xpeft("put", "alice", str(file))
    assert (result.exit_code, result.stdout) == (0, f"created alice {version_of(file.read_bytes())}\n")
    assert server.profiles == {"alice": file.read_bytes()}
    [(method, path, headers)] = server.seen
    assert (method, path) == ("PUT", "/v1/profiles/alice")
    assert headers["content-type"] == FILE_TYPE
    assert headers["authorization"] == "Bearer xp_secret"
    assert "if-match" not in headers


def test_put_over_an_existing_profile_says_stored(xpeft: Call, file: Path) -> None:
    xpeft("put", "alice", str(file))
    assert xpeft("put", "alice", str(file)).stdout.startswith("stored alice sha256:")


def test_no_key_means_no_authorization_header(xpeft: Call, server: TinyServer, file: Path) -> None:
    assert xpeft("put", "alice", str(file), key="").exit_code == 0
    assert "authorization" not in server.seen[0][2]


def test_conditions_travel_as_entity_tags(xpeft: Call, server: TinyServer, file: Path) -> None:
    version = version_of(b"")
    xpeft("put", "alice", str(file), "--if-match", version)
    xpeft("put", "alice", str(file), "--if-none-match", "*")
    xpeft("rm", "alice", "--if-match", version)
    first, second, third = (headers for _, _, headers in server.seen)
    assert first["if-match"] == f'"{version}"'
    assert second["if-none-match"] == "*"
    assert third["if-match"] == f'"{version}"'


def test_a_condition_that_does_not_hold_is_one_line_and_exit_code_1(xpeft: Call, file: Path) -> None:
    xpeft("put", "alice", str(file))
    result = xpeft("put", "alice", str(file), "--if-none-match", "*")
    assert result.exit_code == 1
    expected = "xpeft: 412 Precondition Failed (precondition_failed): profile 'alice' exists\n"
    assert result.stderr == expected


@pytest.mark.parametrize("version", ["sha256:123", "latest", 'sha256:"', ""])
def test_a_condition_that_is_no_version_is_refused_before_the_call(
    version: str, xpeft: Call, server: TinyServer, file: Path
) -> None:
    result = xpeft("put", "alice", str(file), "--if-match", version)
    assert result.exit_code == 1
    assert f"if-match is {version!r}, it must be a version" in result.stderr
    assert server.seen == []


@pytest.mark.parametrize("name", ["..", "", "a/b", "ä", "x" * 129, "-a"])
@pytest.mark.parametrize("command", ["put", "get", "rm"])
def test_a_name_that_no_server_takes_never_becomes_a_path(
    command: str, name: str, xpeft: Call, server: TinyServer, file: Path
) -> None:
    arguments = ["--", name, str(file)] if command == "put" else ["--", name]
    result = xpeft(command, *arguments)
    assert result.exit_code == 1
    assert "is not a name" in result.stderr
    assert server.seen == []


def test_put_of_a_missing_file_says_so(xpeft: Call, tmp_path: Path) -> None:
    result = xpeft("put", "alice", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert result.stderr == f"xpeft: {tmp_path / 'nothing'} cannot be read: No such file or directory\n"


def test_get_shows_the_metadata(xpeft: Call, server: TinyServer) -> None:
    server.profiles["alice"] = b"12345"
    result = xpeft("get", "alice")
    assert result.exit_code == 0, result.output
    shown = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert {name: value.strip() for name, value in shown} == {
        "name": "alice",
        "version": version_of(b"12345"),
        "labels": "good, b [31mad",
        "bytes": "5",
        "created": "1970-01-01 00:00:00 UTC",
        "updated": "1970-01-02 00:00:00 UTC",
    }


def test_get_as_json_is_what_the_server_said(xpeft: Call, server: TinyServer) -> None:
    server.profiles["alice"] = b"12345"
    assert json.loads(xpeft("get", "alice", "--json").stdout)["version"] == version_of(b"12345")


def test_get_with_out_writes_the_file(xpeft: Call, server: TinyServer, tmp_path: Path) -> None:
    server.profiles["alice"] = b"\x00\xff12345"
    out = tmp_path / "out.safetensors"
    result = xpeft("get", "alice", "--out", str(out))
    assert (result.exit_code, result.stdout) == (0, f"wrote {out} (7 bytes)\n")
    assert out.read_bytes() == b"\x00\xff12345"


def test_get_never_replaces_a_file_without_force(xpeft: Call, server: TinyServer, file: Path) -> None:
    server.profiles["alice"] = b"new"
    before = file.read_bytes()
    assert "is there already" in xpeft("get", "alice", "--out", str(file)).stderr
    assert file.read_bytes() == before
    assert xpeft("get", "alice", "--out", str(file), "--force").exit_code == 0
    assert file.read_bytes() == b"new"


def test_get_of_an_absent_profile_writes_nothing(xpeft: Call, tmp_path: Path) -> None:
    result = xpeft("get", "bob", "--out", str(tmp_path / "bob"))
    assert result.exit_code == 1
    expected = "xpeft: 404 Not Found (profile_not_found): there is no profile 'bob' [request r-1]\n"
    assert result.stderr == expected
    assert list(tmp_path.iterdir()) == []


def test_list_follows_the_cursor_to_the_end(xpeft: Call, server: TinyServer) -> None:
    server.profiles = {f"p{i}": b"" for i in range(7)}
    server.page = 3
    lines = xpeft("list", "--json").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == [f"p{i}" for i in range(7)]
    assert len(server.seen) == 3


@pytest.mark.parametrize(("limit", "calls"), [(1, 1), (3, 1), (4, 2), (6, 2), (50, 3)])
def test_list_shows_at_most_the_limit(limit: int, calls: int, xpeft: Call, server: TinyServer) -> None:
    server.profiles = {f"p{i}": b"" for i in range(7)}
    server.page = 3
    lines = xpeft("list", "--limit", str(limit), "--json").stdout.splitlines()
    assert len(lines) == min(limit, 7)
    assert len(server.seen) == calls


def test_list_takes_a_prefix_and_shows_a_table(xpeft: Call, server: TinyServer) -> None:
    server.profiles = {"team-a.x": b"1", "team-a.y": b"22", "team-b.z": b""}
    result = xpeft("list", "--prefix", "team-a.")
    header, first, second, count = result.stdout.splitlines()
    assert header.split() == ["name", "version", "labels", "bytes", "updated"]
    assert first.split()[:2] == ["team-a.x", version_of(b"1")[:19]]
    assert second.startswith("team-a.y")
    assert count == "2 profiles"


def test_a_prefix_that_is_no_text_is_refused(xpeft: Call, server: TinyServer) -> None:
    for more in ([], ["--json"]):
        done = xpeft("list", "--prefix", "a\udcff", *more)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "prefix is 'a\\udcff', which is not UTF-8" in done.stderr
    assert server.seen == []


def test_a_prefix_of_any_characters_arrives_as_it_is(xpeft: Call, server: TinyServer) -> None:
    xpeft("list", "--prefix", "a&limit=5 é")
    assert parse_qs(urlsplit(server.seen[0][1]).query)["prefix"] == ["a&limit=5 é"]


def test_a_cursor_that_comes_back_ends_the_list_with_an_error(xpeft: Call, server: TinyServer) -> None:
    server.scripted = lambda handler: handler.answer_json(
        200, {"data": [{"name": "a", "updated": 1}], "next_cursor": "c"}
    )
    result = xpeft("list", "--json")
    assert result.exit_code == 1
    assert "sent the page cursor 'c' twice" in result.stderr


@pytest.mark.parametrize("entry", [7, {}, {"name": None, "updated": 1}, {"name": "a"}, {"name": "a", "updated": "now"}])
def test_an_entry_of_the_list_that_is_no_profile_is_an_error(xpeft: Call, server: TinyServer, entry: object) -> None:
    server.scripted = lambda handler: handler.answer_json(200, {"data": [entry], "next_cursor": None})
    for more in ([], ["--json"]):
        result = xpeft("list", *more)
        assert result.exit_code == 1
        assert f"listed {entry!r}, which names no profile" in result.stderr


def test_rm_removes_the_profile(xpeft: Call, server: TinyServer) -> None:
    server.profiles["alice"] = b""
    assert xpeft("rm", "alice").stdout == "removed alice\n"
    assert server.profiles == {}
    assert xpeft("rm", "alice").exit_code == 1


@pytest.mark.parametrize(
    ("scripted", "message"),
    [
        (
            lambda handler: handler.refuse(401, "no_key", "a key is needed"),
            "401 Unauthorized (no_key): a key is needed; give a key with --api-key or XPEFT_API_KEY",
        ),
        (
            lambda handler: handler.refuse(429, "overloaded", "too much", Retry_After="3"),
            "429 Too Many Requests (overloaded): too much; try again in 3 seconds",
        ),
        (
            lambda handler: handler.refuse(503, "unavailable", "store down", Retry_After="2"),
            "503 Service Unavailable (unavailable): store down; try again in 2 seconds",
        ),
        (
            lambda handler: handler.refuse(500, "internal", "two\nlines \x1b[31m"),
            "500 Internal Server Error (internal): two lines  [31m",
        ),
        (
            lambda handler: handler.answer(502, b"<html>\n\x1b]0;x\x07</html>"),
            r"URL answered 502 Bad Gateway in no form of an xpeft server's: '<html>\n\x1b]0;x\x07</html>'",
        ),
        (
            lambda handler: handler.answer(302, Location="http://elsewhere.test/"),
            "URL answered 302 Found in no form of an xpeft server's: ''",
        ),
        (
            lambda handler: handler.answer(200, b"hello"),
            "URL answered with something else than a JSON object: is it an xpeft server?",
        ),
        (
            lambda handler: handler.wfile.write(b"SSH-2.0-x\r\n"),
            "URL cannot be reached: SSH-2.0-x",
        ),
        (
            lambda handler: None,
            "URL cannot be reached: Remote end closed connection without response",
        ),
    ],
)
def test_every_failure_is_one_readable_line(
    scripted: Callable[[Handler], None], message: str, xpeft: Call, server: TinyServer
) -> None:
    server.scripted = scripted
    result = xpeft("get", "alice")
    assert result.exit_code == 1
    assert result.stderr == f"xpeft: {message.replace('URL', server.url)}\n"
    assert result.stdout == ""


def test_a_file_of_another_type_is_not_taken_for_a_profile(xpeft: Call, server: TinyServer, tmp_path: Path) -> None:
    server.scripted = lambda handler: handler.answer_json(200, {})
    result = xpeft("get", "alice", "--out", str(tmp_path / "out"))
    assert "sent 'application/json' where a profile file belongs" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_that_comes_before_the_body_was_read_is_still_shown(
    xpeft: Call, server: TinyServer, tmp_path: Path
) -> None:
    server.scripted = lambda handler: handler.refuse(413, "too_large", "a profile file has at most 1048576 bytes")
    large = tmp_path / "large"
    large.write_bytes(bytes(1 << 16))
    result = xpeft("put", "alice", str(large))
    assert result.exit_code == 1
    assert "413" in result.stderr


def test_a_server_that_is_not_there_is_said_with_what_to_do(file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = runner.invoke(app, ["put", "alice", str(file), "--url", url])
    assert result.exit_code == 1
    assert result.stderr == (
        f"xpeft: nothing listens at {url}: start a server with `xpeft serve`, "
        "or say where it is with --url or XPEFT_URL\n"
    )


def test_a_server_that_never_answers_is_given_up(
    xpeft: Call, server: TinyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles_client, "_TIMEOUT", 0.05)
    given_up = threading.Event()
    server.scripted = lambda handler: None if given_up.wait(10) else handler.answer(200)
    result = xpeft("get", "alice")
    given_up.set()
    assert f"{server.url} sent nothing for 0.05 seconds" in result.stderr


def test_https_to_a_server_that_speaks_none_is_said(server: TinyServer) -> None:
    result = runner.invoke(app, ["list", "--url", server.url.replace("http", "https")])
    assert result.exit_code == 1
    assert "no secure connection" in result.stderr


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "http://me:pw@host", "http://host?x=1"]
)
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    result = runner.invoke(app, ["list", "--url", url])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"xpeft: url is {url!r}")


def test_a_server_behind_a_path_is_reached_there(server: TinyServer) -> None:
    server.scripted = lambda handler: handler.answer_json(200, {"data": [], "next_cursor": None})
    assert runner.invoke(app, ["list", "--url", f"{server.url}/models/"]).exit_code == 0
    assert server.seen[0][1].startswith("/models/v1/profiles?")


def test_a_key_that_cannot_be_one_is_refused_and_not_shown(xpeft: Call, server: TinyServer) -> None:
    result = xpeft("list", key="xp_\nsecret")
    assert result.exit_code == 1
    assert "secret" not in result.output
    assert server.seen == []


@pytest.mark.parametrize("command", ["put", "get", "list", "rm"])
def test_the_help_has_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: xpeft profiles {command}" in result.stdout
