"""What the Makefile, CI, the image and the compose file say is so, as far as that shows without a container engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from xpeft_server.settings import is_loopback, load_settings

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("setup", "demo", "test", "nightly", "lint", "audit", "serve", "clean", "help")


def _dockerfile() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name]


def _last_stage() -> list[tuple[str, str]]:
    instructions = _dockerfile()
    start = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[start:]


def _image_environment() -> dict[str, str]:
    words = [word for name, rest in _last_stage() if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def _compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def _xpeft_variables(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("XPEFT_")}


def test_every_file_that_the_image_copies_is_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line[1:].rstrip("/") for line in ignored if line.startswith("!")]
    copies = [rest.split()[:-1] for name, rest in _dockerfile() if name == "COPY" and "--from=" not in rest]
    sources = [source.rstrip("/") for copy in copies for source in copy]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in sent), source


def test_the_image_runs_the_server_as_a_user_without_rights_and_searches_no_working_directory() -> None:
    stage = _last_stage()
    assert [rest for name, rest in stage if name == "USER"] == ["xpeft"]
    assert _image_environment()["PYTHONSAFEPATH"] == "1"
    command = [json.loads(rest) for name, rest in stage if name in {"ENTRYPOINT", "CMD"}]
    assert command == [["xpeft"], ["serve"]]


def test_the_image_sets_only_settings_that_exist_and_needs_a_key_file() -> None:
    settings = load_settings({}, _xpeft_variables(_image_environment()))
    assert not is_loopback(settings.host)
    assert settings.api_keys == Path("/keys/keys.json")
    assert [rest for name, rest in _last_stage() if name == "EXPOSE"] == [str(settings.port)]


class _Health(BaseHTTPRequestHandler):
    healthy = True

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" and self.healthy else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


class _Ill(_Health):
    healthy = False


@pytest.fixture(params=[_Health, _Ill], ids=["healthy", "ill"])
def health_server(request: pytest.FixtureRequest) -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_health_check_of_the_image_asks_the_health_route(health_server: HTTPServer) -> None:
    check = next(rest for name, rest in _last_stage() if name == "HEALTHCHECK")
    program, *arguments = json.loads(check[check.index("CMD ") + 4 :])
    assert program == "python"
    environment = {"XPEFT_PORT": str(health_server.server_port), "http_proxy": "http://192.0.2.1:1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
    assert (done.returncode == 0) == health_server.RequestHandlerClass.healthy  # type: ignore[attr-defined]


def test_the_server_of_the_compose_file_is_given_settings_that_it_takes() -> None:
    server = _compose()["services"]["server"]
    settings = load_settings({}, _xpeft_variables(_image_environment()) | server["environment"])
    assert settings.store.startswith("redis://redis:")
    assert int(server["stop_grace_period"].removesuffix("s")) > settings.drain_seconds


def test_the_services_of_the_compose_file_name_only_what_exists() -> None:
    compose = _compose()
    for name, service in compose["services"].items():
        assert service.get("depends_on", {}).keys() <= compose["services"].keys(), name
        for source in (volume.split(":")[0] for volume in service.get("volumes", [])):
            assert source in compose["volumes"] or (ROOT / "deploy" / source).exists(), f"{name}: {source}"
        if "build" in service:
            assert (ROOT / "deploy" / service["build"]["context"] / "Dockerfile").exists()


def test_only_loopback_can_reach_what_the_compose_file_publishes() -> None:
    ports = [port for service in _compose()["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_scrapes_the_server_with_the_key_that_the_first_start_makes() -> None:
    services = _compose()["services"]
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{_image_environment()['XPEFT_PORT']}"]}]
    keys_file, operator_key = services["first-key"]["command"]
    assert job["authorization"]["credentials_file"] == operator_key
    assert keys_file == _image_environment()["XPEFT_API_KEYS"]


def _make_first_key(folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script, *files = ROOT / "deploy" / "first-key.sh", folder / "keys.json", folder / "operator.key"
    command = ["/bin/sh", str(script), *map(str, files)]
    return subprocess.run(command, env={"PATH": path}, cwd=folder, capture_output=True, text=True, check=False)


def test_the_first_start_makes_one_operator_key_and_the_second_leaves_it(tmp_path: Path) -> None:
    first = _make_first_key(tmp_path)
    assert first.returncode == 0, first.stderr
    key = (tmp_path / "operator.key").read_text(encoding="utf-8")
    assert key not in first.stdout + first.stderr
    (entry,) = json.loads((tmp_path / "keys.json").read_text(encoding="utf-8"))["keys"]
    assert entry["role"] == "operator"
    assert entry["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert _make_first_key(tmp_path).returncode == 0
    assert (tmp_path / "operator.key").read_text(encoding="utf-8") == key


def test_redis_takes_the_options_of_the_compose_file_and_syncs_each_write(tmp_path: Path) -> None:
    options = _compose()["services"]["redis"]["command"]
    socket = tmp_path / "redis.sock"
    command = [*options, "--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path), "--daemonize", "no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("eady to accept connections" in line for line in server.stdout)
            with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
                wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
                assert client.config_get(*wanted) == wanted
        finally:
            server.kill()


@pytest.mark.parametrize("target", TARGETS)
def test_make_lists_every_target_with_what_it_does(target: str) -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^make {target} +\w", listed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["demo"], ".venv/bin/python examples/demo.py"),
        (["demo", "ONCE=1"], ".venv/bin/python examples/demo.py --once"),
        (["demo", "ONCE=1", "PLM=a/b"], ".venv/bin/python examples/demo.py --once --plm 'a/b'"),
        (["test", "ARGS=-x"], "OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile -x"),
        (["nightly", "ARGS=-x"], "NIGHTLY=1 OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile -x"),
        (["serve", "ARGS=--port 9000"], "exec .venv/bin/xpeft serve --port 9000"),
    ],
)
def test_make_passes_on_what_it_is_told(arguments: list[str], command: str) -> None:
    told = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "ARGS", "ONCE", "PLM"}}
    planned = subprocess.run(["make", "-n", *arguments], cwd=ROOT, env=told, capture_output=True, text=True, check=True)
    assert command in [line.rstrip() for line in planned.stdout.splitlines()]


def test_ci_runs_lint_the_audit_the_demo_and_then_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    steps = re.findall(r"^step (.+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert steps == ["make setup", "make lint", "make audit", "make demo ONCE=1", "make test"]


def test_the_public_ci_runs_the_same_script_on_both_pythons() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_the_public_ci_runs_the_long_tests_each_night_on_both_pythons() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8"))
    # YAML takes the key "on" for a truth.
    assert set(workflow[True]) == {"schedule", "workflow_dispatch"}
    job = workflow["jobs"]["nightly"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make nightly"]


def test_the_hooks_before_a_commit_are_the_tools_of_make_lint() -> None:
    config = ROOT / ".pre-commit-config.yaml"
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", config], check=True)
    hooks = yaml.safe_load(config.read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]
