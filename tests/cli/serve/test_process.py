"""A whole server process with an engine that answers when it is told to: signals, draining, keys."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from xpeft_server.api.access.key_file import read_keys, write_keys
from xpeft_server.cli.main import app

# Nothing then loads PyTorch, which takes longer than all that a test does.
WITHOUT_TORCH = """
import sys, types
for module, name in (("xpeft_server.engine.engine", "Engine"), ("xpeft_server.cli.serve.assembly", "build_engine")):
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], name, None)
"""

# SIGUSR1 lets the engine answer, SIGUSR2 is the death of its device thread.
WITH_TORCH = """
import asyncio, signal
from xpeft_profiles import BankGeometry
from xpeft_server.cli import main
from xpeft_server.cli.serve import running_server
from xpeft_server.engine.errors import Unavailable
from xpeft_server.engine.requests import ClassifiedText, ClassifyAnswer, EngineInfo, EngineStatus

class Engine:
    geometry = BankGeometry("sha256:" + "ab" * 32, 2, 16, 8, 4)
    info = EngineInfo("tiny", "bert", "cpu", "float32", {}, False, 512, 8, 1024, 64, 4096, 4)

    def __init__(self, on_death):
        self.on_death = on_death

    async def start(self):
        self.go, self.closed = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.go.set)
        loop.add_signal_handler(signal.SIGUSR2, self.on_death)

    def status(self):
        return EngineStatus(True, {"engine": "ok"})

    def check_room(self, tenant):
        pass

    async def classify(self, request):
        print("waiting", flush=True)
        parts = [asyncio.ensure_future(event.wait()) for event in (self.go, self.closed)]
        await asyncio.wait(parts, return_when="FIRST_COMPLETED")
        if self.closed.is_set():
            raise Unavailable("the server stopped before it could answer")
        one = ClassifiedText("a", 1.0, (1.0,), 1)
        return ClassifyAnswer("sha256:" + "cd" * 32, ("a",), (one,), 3, 0.0, 0.0)

    async def close(self):
        self.closed.set()

running_server.build_engine = lambda settings, store, metrics, tenants, on_death: Engine(on_death)
main.app()
"""
# A machine that is busy may hold up the end of a server for longer than the second that it gives itself.
PATIENT = """
from xpeft_server.cli.serve import running_server
force = running_server._end_by_force_after
running_server._end_by_force_after = lambda seconds: force(seconds + 5)
"""
PROGRAM = WITHOUT_TORCH + PATIENT + WITH_TORCH

STILL_LOADING = f"""{WITHOUT_TORCH}
import threading
from xpeft_server.cli import main
from xpeft_server.cli.serve import running_server

def load(*arguments, **more):
    print("loading", flush=True)
    threading.Event().wait()

running_server.build_engine = load
main.app()
"""

# Another program bound the same port while neither listened, and does so first.
OVERTAKEN = f"""{WITHOUT_TORCH}
import socket
from xpeft_server.cli.serve import http_server
startup = http_server.HttpServer.startup

async def overtaken(self, sockets):
    other = socket.socket()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    other.bind(sockets[0].getsockname())
    other.listen()
    await startup(self, sockets)

http_server.HttpServer.startup = overtaken
{WITH_TORCH}"""


class Process:
    def __init__(self, *arguments, program=PROGRAM):
        env = {name: value for name, value in os.environ.items() if not name.startswith("XPEFT_")}
        command = [sys.executable, "-c", program, "serve", "--port", "0", "--store", "memory://", *arguments]
        self.popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, env=env
        )
        self.line = self.popen.stdout.readline()
        self.url = "".join(re.findall(r"http://\S+", self.line))

    def call(self, path, body=None, key=None):
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def classify(self):
        return self.call("/v1/classify", {"profile": "p", "input": "a"})

    def ends(self):
        out, err = self.popen.communicate(timeout=30)
        return self.popen.returncode, out, err


@pytest.fixture
def start():
    started = []

    def build(*arguments, **more):
        started.append(Process(*arguments, **more))
        return started[-1]

    yield build
    for process in started:
        process.popen.kill()
        process.popen.communicate()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_says_where_it_is_and_ends_with_0_when_asked_to(start, number):
    server = start()
    for word in ("PLM minilm", "bank random:", "store memory://", "keys off"):
        assert word in server.line
    assert server.call("/ready")[0] == 200
    began = time.monotonic()
    server.popen.send_signal(number)
    code, _, err = server.ends()
    assert code == 0
    assert time.monotonic() - began < 10
    assert "Traceback" not in err


def test_a_server_that_loads_its_model_ends_with_0_when_asked_to(start):
    server = start(program=STILL_LOADING)
    assert server.line == "loading\n"
    server.popen.send_signal(signal.SIGTERM)
    assert server.ends()[0] == 0


def test_a_server_that_another_one_overtook_at_its_port_says_so_in_a_line_and_ends_with_1(start):
    code, out, err = start(program=OVERTAKEN).ends()
    assert (code, out) == (1, "")
    assert "cannot listen at http://127.0.0.1:" in err
    assert "Traceback" not in err


def test_what_is_in_flight_is_answered_and_nothing_new_is_taken(start, pool):
    server = start("--drain-seconds", "30")
    inside = pool.submit(server.classify)
    assert server.popen.stdout.readline() == "waiting\n"
    server.popen.send_signal(signal.SIGTERM)
    while server.call("/ready")[0] != 503:
        pass
    assert server.call("/ready")[1]["checks"]["server"] == "draining"
    assert server.classify()[0] == 503
    assert server.call("/health")[0] == 200
    assert not inside.done()
    server.popen.send_signal(signal.SIGUSR1)
    assert inside.result()[0] == 200
    code, out, err = server.ends()
    assert (code, out) == (0, "")
    assert "Traceback" not in err


def test_who_still_waits_at_the_end_of_the_drain_is_told(start, pool):
    # PyTorch is what could make the end late.
    server = start("--drain-seconds", "4", program=WITH_TORCH)
    inside = pool.submit(server.classify)
    assert server.popen.stdout.readline() == "waiting\n"
    server.popen.send_signal(signal.SIGTERM)
    status, body = inside.result()
    assert (status, body["error"]["code"]) == (503, "unavailable")
    code, _, err = server.ends()
    assert code == 0
    assert "still not stopped" not in err
    assert "Traceback" not in err


@pytest.mark.parametrize("seconds", ["0", "1"])
def test_whose_body_is_not_there_at_the_end_of_the_drain_is_told(start, seconds):
    server = start("--drain-seconds", seconds)
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=30) as client:
        client.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"{")
        server.popen.send_signal(signal.SIGTERM)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "draining"
    code, _, err = server.ends()
    assert code == 0
    assert "Traceback" not in err


def test_a_second_signal_ends_at_once(start, pool):
    server = start("--drain-seconds", "60")
    inside = pool.submit(server.classify)
    assert server.popen.stdout.readline() == "waiting\n"
    server.popen.send_signal(signal.SIGTERM)
    while server.call("/ready")[0] != 503:
        pass
    server.popen.send_signal(signal.SIGTERM)
    assert server.ends()[0] == -signal.SIGTERM
    assert inside.exception() is not None


def test_a_dead_engine_ends_the_process_with_1(start):
    server = start()
    server.popen.send_signal(signal.SIGUSR2)
    assert server.ends()[0] == 1


def test_a_collector_that_is_not_there_holds_up_neither_a_request_nor_the_end(start, free_port):
    server = start("--otlp-endpoint", f"http://127.0.0.1:{free_port()}", "--drain-seconds", "3")
    server.popen.send_signal(signal.SIGUSR1)
    began = time.monotonic()
    assert [server.classify()[0] for _ in range(50)] == [200] * 50
    assert time.monotonic() - began < 10
    server.popen.send_signal(signal.SIGTERM)
    code, _, err = server.ends()
    assert code == 0
    assert "still not stopped" not in err
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["message"] for line in lines if line["level"] == "warning"][-1:] == [
        "the last spans were not sent: the collector did not take them in time"
    ]


def test_a_key_is_taken_and_revoked_without_a_restart(start, tmp_path):
    path = tmp_path / "keys.json"
    keys = CliRunner()

    def run(*arguments):
        return keys.invoke(app, ["keys", *arguments, "--file", str(path)]).stdout.strip()

    first = run("create", "--tenant", "acme", "--role", "infer")
    server = start("--api-keys", str(path))
    assert "keys on" in server.line
    assert server.call("/v1/models")[0] == 401
    assert server.call("/v1/models", key=first)[0] == 200
    second = run("create", "--tenant", "acme", "--role", "infer")
    run("revoke", "acme-1")
    deadline = threading.Event()
    timer = threading.Timer(20, deadline.set)
    timer.start()
    while server.call("/v1/models", key=first)[0] != 401:
        assert not deadline.is_set()
    timer.cancel()
    assert server.call("/v1/models", key=second)[0] == 200


def test_a_key_expires_and_its_successor_is_taken_without_a_restart(start, tmp_path):
    path, audit = tmp_path / "keys.json", tmp_path / "audit.jsonl"

    def run(*arguments):
        return CliRunner().invoke(app, ["keys", *arguments, "--file", str(path)]).stdout.strip()

    old = run("create", "--tenant", "acme", "--role", "admin")
    server = start("--api-keys", str(path), "--audit-log", str(audit))
    assert server.call("/v1/models", key=old)[0] == 200
    new = run("rotate", "acme-1", "--grace", "1h")
    first, second = read_keys(path)
    # The hour is over in two seconds.
    soon = datetime.now(UTC) + timedelta(seconds=2)
    write_keys(path, [dataclasses.replace(first, expires=soon.isoformat()), second])
    deadline = time.monotonic() + 20
    while server.call("/v1/models", key=new)[0] != 200 or server.call("/v1/models", key=old)[0] != 401:
        assert time.monotonic() < deadline
    assert time.time() >= soon.timestamp()
    server.popen.send_signal(signal.SIGTERM)
    assert server.ends()[0] == 0
    entries = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {entry["status"] for entry in entries} == {401}
    assert old not in audit.read_text()
    assert new not in audit.read_text()
