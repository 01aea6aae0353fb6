"""docs/kubernetes.md: its overlays are rendered, and its commands run against a cluster that only writes down."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from xpeft_server.api.key_file import parse_keys
from xpeft_server.settings import load_settings
from xpeft_server.tenant_limits import parse_limits

# What a Secret needs no cluster for is left to the real one; `apply` keeps what it is told to apply.
KUBECTL = """#!/bin/sh
case "$*" in *--dry-run=client*) exec "$REAL_KUBECTL" "$@" ;; esac
case "$*" in
    "apply -f -") cat ;;
    "apply -f "*) cat "$3" ;;
    "apply -k "*) "$REAL_KUBECTL" kustomize "$3" ;;
    *) echo "kubectl $*: not expected" >&2; exit 1 ;;
esac >>applied.yaml && echo --- >>applied.yaml
"""


@pytest.fixture(scope="module")
def text(project_root: Path) -> str:
    return (project_root / "docs" / "kubernetes.md").read_text()


def block(text: str, mark: str) -> str:
    found = re.findall(rf"^```{mark}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, mark
    return str(found[0])


@pytest.fixture
def reader(tmp_path: Path, project_root: Path, text: str) -> Path:
    """Where a reader works: the repository, and beside it an overlay of the reader's own."""
    (tmp_path / "xpeft-server").symlink_to(project_root)
    (tmp_path / "xpeft").mkdir()
    (tmp_path / "xpeft" / "kustomization.yaml").write_text(block(text, "yaml own-single"))
    return tmp_path


@pytest.fixture
def run(reader: Path, kubectl: str) -> Callable[[str], tuple[str, list[Any]]]:
    """Runs commands; gives what they printed, and every object that was applied so far."""
    programs = reader / "programs"
    programs.mkdir()
    (programs / "kubectl").write_text(KUBECTL)
    (programs / "kubectl").chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "HOME": str(reader), "REAL_KUBECTL": kubectl, "KUBECONFIG": "/nowhere"}

    def shell(commands: str) -> tuple[str, list[Any]]:
        strict = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(strict, cwd=reader, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        applied = yaml.safe_load_all((reader / "applied.yaml").read_text())
        return done.stdout, [each for each in applied if each is not None]

    return shell


def secrets(objects: list[Any]) -> dict[str, dict[str, bytes]]:
    """Name → key → content, of the last Secret of each name."""
    found = (each for each in objects if each["kind"] == "Secret")
    return {each["metadata"]["name"]: {key: b64decode(value) for key, value in each["data"].items()} for each in found}


def asked_for(objects: list[Any]) -> set[tuple[str, str | None]]:
    """Secrets that the objects name, with the key where they name one."""
    names = re.findall(r'"secretName": "([^"]+)"', json.dumps(objects))
    pairs = re.findall(r'"(?:secretKeyRef|credentials)": ({.*?})', json.dumps(objects))
    needed = [each for each in map(json.loads, pairs) if not each.get("optional")]
    return {(name, None) for name in names} | {(each["name"], each["key"]) for each in needed}


def test_the_five_commands_apply_one_server_with_every_secret_that_it_asks_for(
    text: str, reader: Path, run: Callable[[str], tuple[str, list[Any]]]
) -> None:
    commands = block(text, "sh needs-kubernetes single")
    assert len(commands.splitlines()) == 5
    printed, objects = run(commands)
    assert [each["kind"] for each in objects][:2] == ["Namespace", "Secret"]
    for each in objects:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    made = secrets(objects)
    assert asked_for(objects) == {("xpeft-keys", None)}
    operator, admin = parse_keys(made["xpeft-keys"]["keys.json"])
    (tenants_key,) = printed.split()
    assert admin.sha256 == hashlib.sha256(tenants_key.encode()).hexdigest()
    assert operator.sha256 == hashlib.sha256((reader / "operator.key").read_bytes()).hexdigest()
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/xpeft-server:0.1.0"


def test_further_commands_add_a_key_and_make_the_secrets_of_several_servers(
    text: str, run: Callable[[str], tuple[str, list[Any]]], install: Any
) -> None:
    run(block(text, "sh needs-kubernetes single"))
    before = secrets(run(block(text, "sh needs-kubernetes another-key"))[1])
    made = secrets(run(block(text, "sh needs-kubernetes redis"))[1])
    tenants = [entry.tenant for entry in parse_keys(before["xpeft-keys"]["keys.json"])]
    assert tenants == [None, "airline", "hotel"]
    there = {(name, key) for name, keys in made.items() for key in (*keys, None)}
    assert asked_for(install("ha").objects) <= there
    url = made["xpeft-redis"]["url"].decode()
    assert load_settings({}, {"XPEFT_STORE": url}).store == url.strip()
    assert made["xpeft-operator-key"]["token"].startswith(b"xp_")
    assert made["xpeft-operator-key"]["token"].split() == [made["xpeft-operator-key"]["token"]]


def test_an_overlay_of_ones_own_names_model_bank_and_limits(
    text: str, reader: Path, kustomize: Callable[[Path], list[Any]]
) -> None:
    (reader / "xpeft" / "limits.json").write_text(block(text, "json limits"))
    (reader / "xpeft" / "kustomization.yaml").write_text(block(text, "yaml own-model"))
    objects = kustomize(reader / "xpeft")
    for each in objects:
        if each["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    (config,) = [each for each in objects if each["kind"] == "ConfigMap"]
    limits = parse_limits(config["data"]["limits.json"].encode())
    assert (limits.of("airline").weight, limits.of("airline").max_profiles, limits.of("hotel").weight) == (4, 1000, 1)
    (pod,) = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "Deployment"]
    environment = {each["name"]: each.get("value", "redis://redis") for each in pod["containers"][0]["env"]}
    settings = load_settings({}, environment)
    assert (settings.plm, settings.bank) == ("/models/plm", "/models/bank.safetensors")
    assert settings.tenant_limits == Path("/limits/limits.json")
    assert {"name": "tenant-limits", "configMap": {"name": config["metadata"]["name"]}} in pod["volumes"]
    mounts = [each["name"] for each in pod["containers"][0]["volumeMounts"]]
    assert sorted(mounts) == sorted(each["name"] for each in pod["volumes"])


def several_with(text: str, reader: Path, patches: str) -> Path:
    """The folder of an overlay for several servers, patched."""
    own = block(text, "yaml own-single").replace("overlays/single", "overlays/ha") + block(text, patches)
    (reader / "xpeft" / "kustomization.yaml").write_text(own)
    return reader / "xpeft"


def test_a_redis_elsewhere_takes_the_place_of_the_namespace(
    text: str, reader: Path, kustomize: Callable[[Path], list[Any]]
) -> None:
    objects = kustomize(several_with(text, reader, "yaml own-redis"))
    (policy,) = [each for each in objects if each["metadata"]["name"] == "xpeft-server-to-redis"]
    egress = policy["spec"]["egress"]
    elsewhere = {"ipBlock": {"cidr": "198.51.100.7/32"}}
    assert egress == [{"to": [elsewhere], "ports": [{"protocol": "TCP", "port": 6380}]}]


def test_the_autoscaler_and_the_service_monitor_can_be_taken_out(
    text: str, reader: Path, kustomize: Callable[[Path], list[Any]], install: Any
) -> None:
    left = {each["kind"] for each in kustomize(several_with(text, reader, "yaml own-without"))}
    assert left == {each["kind"] for each in install("ha").objects} - {"HorizontalPodAutoscaler", "ServiceMonitor"}


def test_every_file_and_component_that_the_text_lists_is_there_and_none_is_left_out(
    text: str, project_root: Path
) -> None:
    folder = project_root / "deploy" / "kubernetes"
    listed = set(re.findall(r"^    (\S+)  +\S", text, re.MULTILINE))
    parts = {path.parent.relative_to(folder) for path in folder.rglob("kustomization.yaml")}
    files = {path.relative_to(folder) for path in (folder / "namespace.yaml", *(folder / "examples").iterdir())}
    assert {str(each) for each in parts | files} == listed
