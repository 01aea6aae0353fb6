"""The compose files: a validator takes them, what they name exists, and nothing is more open than it has to be."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from compose_spec import PyCompose

from xpeft_server.settings_source import load_settings

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ("compose.yaml", "compose.gpu.yaml")
VARIANTS = (FILES[:1], FILES)


def _read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / name).read_text(encoding="utf-8"))
    return loaded


def _merged(below: Any, above: Any) -> Any:
    """As compose lays one file over another, as far as mappings and plain values go."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return copy.deepcopy(above)
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}


def _compose(files: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in files:
        found = _merged(found, _read(name))
    return found


@pytest.fixture(params=VARIANTS, ids=["cpu", "gpu"])
def compose(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _compose(request.param)


def _image_stages() -> dict[str, str]:
    """What each stage of the Dockerfile says, with those that it begins from; the last one is the default, too."""
    stages: dict[str, str] = {}
    name = ""
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if started := re.match(r"FROM (\S+) AS (\S+)", line):
            below, name = started.groups()
            stages[name] = stages.get(below, "")
        stages[name] = stages.get(name, "") + line + "\n"
    stages[""] = stages[name]
    return stages


def _image_settings(service: dict[str, Any]) -> dict[str, str]:
    """The XPEFT_ variables that the server of this service starts with."""
    text = _image_stages()[service["build"].get("target", "")].replace("\\\n", " ")
    words = [word for line in re.findall(r"^ENV (.+)$", text, re.MULTILINE) for word in shlex.split(line)]
    variables = dict(word.split("=", 1) for word in words) | service.get("environment", {})
    return {name: value for name, value in variables.items() if name.startswith("XPEFT_")}


@pytest.mark.parametrize("name", FILES)
def test_a_validator_of_the_compose_specification_takes_each_file(name: str) -> None:
    # Merge keys are of YAML, not of the specification.
    assert set(PyCompose.from_yaml(yaml.safe_dump(_read(name))).service_names()) == set(_read(name)["services"])


@pytest.mark.parametrize("files", VARIANTS, ids=["cpu", "gpu"])
def test_docker_compose_takes_them(files: tuple[str, ...]) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not there")
    named = [word for name in files for word in ("-f", str(ROOT / "deploy" / name))]
    done = subprocess.run([docker, "compose", *named, "config", "--quiet"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_services_name_only_what_exists(compose: dict[str, Any]) -> None:
    volumes, networks = compose["volumes"].keys(), compose["networks"].keys()
    for name, service in compose["services"].items():
        assert service.get("depends_on", {}).keys() <= compose["services"].keys(), name
        assert set(service.get("networks", [])) <= networks, name
        for source in (volume.split(":")[0] for volume in service.get("volumes", [])):
            assert source in volumes or (ROOT / "deploy" / source).exists(), f"{name}: {source}"
        if "build" in service:
            assert (ROOT / "deploy" / service["build"]["context"] / "Dockerfile").exists()
            assert service["build"].get("target", "") in _image_stages()
    mounted = {
        volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])
    }
    assert volumes <= mounted


def test_every_image_is_ours_or_has_a_whole_version(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "build" in service or re.search(r":v?\d+\.\d+(\.\d+)?(-alpine)?$", service["image"]), name


def test_only_loopback_can_reach_what_is_published(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:3000:3000", "127.0.0.1:8000:8000", "127.0.0.1:9090:9090"]


def test_only_the_server_can_reach_redis(compose: dict[str, Any]) -> None:
    assert compose["networks"]["store"]["internal"] is True
    on = {name: set(service.get("networks", ["default"])) for name, service in compose["services"].items()}
    assert on["redis"] == {"store"}
    assert [name for name in on if "store" in on[name]] == ["server", "redis"]


def test_no_container_may_write_its_image_or_has_a_capability(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        # With a colon the engine takes it, too, and warns.
        assert service["security_opt"] == ["no-new-privileges=true"], name
        assert not {"privileged", "cap_add", "pid", "ipc"} & service.keys(), name
    # The start script of this image would want to be root first.
    assert compose["services"]["redis"]["user"] == "redis"


def test_every_service_that_stays_has_a_health_check(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if service["restart"] == "no":
            assert service["healthcheck"] == {"disable": True}, name
        elif "build" in service:
            assert "\nHEALTHCHECK " in _image_stages()[service["build"].get("target", "")], name
        else:
            assert service["healthcheck"]["test"][0] == "CMD", name


def test_whoever_is_waited_for_can_come_to_what_is_waited_for(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for other, how in service.get("depends_on", {}).items():
            ends = compose["services"][other]["restart"] == "no"
            assert how == {"condition": "service_completed_successfully" if ends else "service_healthy"}, (name, other)


def test_the_server_is_given_settings_that_it_takes(compose: dict[str, Any]) -> None:
    server = compose["services"]["server"]
    settings = load_settings({}, _image_settings(server))
    assert settings.store.startswith("redis://redis:")
    assert int(server["stop_grace_period"].removesuffix("s")) > settings.drain_seconds


def test_with_a_gpu_the_server_gets_one_and_starts_on_nothing_else() -> None:
    services = _compose(FILES)["services"]
    server = services["server"]
    assert load_settings({}, _image_settings(server)).device == "cuda"
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    # One image, built once, and not the one of the file below.
    assert services["first-key"]["image"] == server["image"] != _compose(FILES[:1])["services"]["server"]["image"]
    assert services["first-key"]["build"] == server["build"]


def test_grafana_has_no_password_and_lets_everybody_look_and_nobody_change(compose: dict[str, Any]) -> None:
    environment = compose["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert not [name for name in environment if "PASSWORD" in name]


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


def test_redis_takes_its_options_syncs_each_write_and_answers_other_hosts_without_a_password(tmp_path: Path) -> None:
    options = _compose(FILES[:1])["services"]["redis"]["command"]
    socket = tmp_path / "redis.sock"
    command = [*options, "--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path), "--daemonize", "no"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("eady to accept connections" in line for line in server.stdout)
            with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
                wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
                wanted["protected-mode"] = "no"
                assert client.config_get(*wanted) == wanted
        finally:
            server.kill()
