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

from xpeft_server.api.access.key_file import parse_keys
from xpeft_server.settings_source import load_settings
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
    pairs = re.findall(r'"(?:secretKeyRef|credentials|secret|keySecret)": ({[^{}]*"key"[^{}]*})', json.dumps(objects))
    needed = [each for each in map(json.loads, pairs) if not each.get("optional")]
    return {(name, None) for name in names} | {(each["name"], each["key"]) for each in needed}


def pod_of(objects: list[Any]) -> Any:
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    return deployment["spec"]["template"]["spec"]


def scraped(objects: list[Any]) -> Any:
    (monitor,) = [each for each in objects if each["kind"] == "ServiceMonitor"]
    (endpoint,) = monitor["spec"]["endpoints"]
    return endpoint


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
    (container,) = pod_of(objects)["containers"]
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
    pod = pod_of(objects)
    environment = {each["name"]: each.get("value", "redis://redis") for each in pod["containers"][0]["env"]}
    settings = load_settings({}, environment)
    assert (settings.plm, settings.bank) == ("/models/plm", "/models/bank.safetensors")
    assert settings.tenant_limits == Path("/limits/limits.json")
    assert {"name": "tenant-limits", "configMap": {"name": config["metadata"]["name"]}} in pod["volumes"]
    mounts = [each["name"] for each in pod["containers"][0]["volumeMounts"]]
    assert sorted(mounts) == sorted(each["name"] for each in pod["volumes"])


def test_every_whole_overlay_of_the_page_names_an_image_that_a_node_can_pull(text: str) -> None:
    blocks = re.findall(r"^```yaml own-\S+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    overlays = [each for each in blocks if "\nresources:\n" in each]
    assert len(overlays) >= 3
    for overlay in overlays:
        (image,) = yaml.safe_load(overlay)["images"]
        assert image["name"] == "xpeft-server"
        assert image["newName"].startswith("registry.example.com/")


def test_the_overlay_for_gpus_takes_the_image_for_gpus(
    text: str, reader: Path, kustomize: Callable[[Path], list[Any]]
) -> None:
    (reader / "xpeft" / "kustomization.yaml").write_text(block(text, "yaml own-gpu"))
    (container,) = pod_of(kustomize(reader / "xpeft"))["containers"]
    assert container["image"] == "registry.example.com/xpeft-server:0.1.0-cuda"
    assert {"name": "XPEFT_DEVICE", "value": "cuda"} in container["env"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(("own", "tag"), [("    newTag: 0.1.0\n", "0.1.0"), ("", "0.1.0-cuda")])
def test_an_overlays_tag_wins_over_that_of_the_component_for_gpus(
    text: str, reader: Path, kustomize: Callable[[Path], list[Any]], own: str, tag: str
) -> None:
    overlay = block(text, "yaml own-single").replace("    newTag: 0.1.0\n", own)
    component = "components: [../xpeft-server/deploy/kubernetes/components/gpu]\n"
    (reader / "xpeft" / "kustomization.yaml").write_text(overlay + component)
    (container,) = pod_of(kustomize(reader / "xpeft"))["containers"]
    assert container["image"] == f"registry.example.com/xpeft-server:{tag}"


def several_with(text: str, reader: Path, *patches: str) -> Path:
    """The folder of an overlay for several servers, patched."""
    own = block(text, "yaml own-single").replace("overlays/single", "overlays/ha")
    (reader / "xpeft" / "kustomization.yaml").write_text(own + "".join(block(text, each) for each in patches))
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


TLS = ("yaml own-tls",)
CLIENT_TLS = (*TLS, "yaml own-client-tls")


@pytest.mark.parametrize("patches", [TLS, CLIENT_TLS])
def test_with_tls_the_server_finds_its_files_in_secrets_that_the_page_makes(
    text: str,
    reader: Path,
    run: Callable[[str], tuple[str, list[Any]]],
    kustomize: Callable[[Path], list[Any]],
    patches: tuple[str, ...],
) -> None:
    objects = kustomize(several_with(text, reader, *patches))
    for each in objects:
        if each["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    for name in ("chain.pem", "key.pem", "ca.pem", "client.pem", "client.key", "clients.pem"):
        (reader / name).write_text(name)
    run(block(text, "sh needs-kubernetes single"))
    run(block(text, "sh needs-kubernetes redis"))
    run(block(text, "sh needs-kubernetes tls"))
    made = secrets(run(block(text, "sh needs-kubernetes client-tls"))[1])
    assert asked_for(objects) <= {(name, key) for name, keys in made.items() for key in (*keys, None)}
    pod = pod_of(objects)
    (container,) = pod["containers"]
    volumes = {each["name"]: made[each["secret"]["secretName"]] for each in pod["volumes"] if "secret" in each}
    mounted = {each["mountPath"]: volumes.get(each["name"], {}) for each in container["volumeMounts"]}
    environment = {each["name"]: each.get("value", "redis://redis") for each in container["env"]}
    settings = load_settings({}, environment)
    wanted = {"chain.pem": settings.tls_certificate, "key.pem": settings.tls_key}
    if patches is CLIENT_TLS:
        wanted["clients.pem"] = settings.tls_client_ca
        wanted["client.pem"] = Path(environment["XPEFT_CLIENT_CERTIFICATE"])
        wanted["client.key"] = Path(environment["XPEFT_CLIENT_KEY"])
    for name, path in wanted.items():
        assert path is not None
        assert mounted[str(path.parent)][path.name] == name.encode()


def test_with_tls_the_kubelet_and_prometheus_ask_by_https(
    text: str, reader: Path, kustomize: Callable[[Path], list[Any]]
) -> None:
    objects = kustomize(several_with(text, reader, *TLS))
    (container,) = pod_of(objects)["containers"]
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: (each["scheme"], each["path"]) for name, each in asked.items()} == {
        "startup": ("HTTPS", "/health"),
        "liveness": ("HTTPS", "/health"),
        "readiness": ("HTTPS", "/ready"),
    }
    endpoint = scraped(objects)
    assert endpoint["scheme"] == "https"
    # Nothing but "ca" and "serverName": the certificate is checked.
    assert endpoint["tlsConfig"] == {
        "ca": {"secret": {"name": "xpeft-tls", "key": "ca.crt"}},
        "serverName": "xpeft-server.xpeft",
    }
    assert endpoint["authorization"]["credentials"]["name"] == "xpeft-operator-key"


def test_where_clients_show_certificates_the_probes_and_prometheus_show_one(
    text: str, reader: Path, kustomize: Callable[[Path], list[Any]]
) -> None:
    objects = kustomize(several_with(text, reader, *CLIENT_TLS))
    (container,) = pod_of(objects)["containers"]
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    assert all("httpGet" not in each for each in probes.values())
    check = ["python", "-m", "xpeft_server.cli.health_check"]
    assert {name: each["exec"]["command"] for name, each in probes.items()} == {
        "startup": check,
        "liveness": check,
        "readiness": [*check, "--ready"],
    }
    # A Python has to start in that time, beside a model that is being loaded.
    assert all(each["timeoutSeconds"] >= 5 for each in probes.values())
    tls = scraped(objects)["tlsConfig"]
    assert tls["cert"] == {"secret": {"name": "xpeft-client-tls", "key": "tls.crt"}}
    assert tls["keySecret"] == {"name": "xpeft-client-tls", "key": "tls.key"}
    assert tls["ca"]["secret"]["name"] == "xpeft-tls"


def test_every_file_and_component_that_the_text_lists_is_there_and_none_is_left_out(
    text: str, project_root: Path
) -> None:
    folder = project_root / "deploy" / "kubernetes"
    listed = set(re.findall(r"^    (\S+)  +\S", text, re.MULTILINE))
    parts = {path.parent.relative_to(folder) for path in folder.rglob("kustomization.yaml")}
    files = {path.relative_to(folder) for path in (folder / "namespace.yaml", *(folder / "examples").iterdir())}
    assert {str(each) for each in parts | files} == listed
