"""What a pod may do, what it is told, when it is asked and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from xpeft_server.api.access.table import PUBLIC
from xpeft_server.settings import SettingsInvalid, is_loopback
from xpeft_server.settings_source import describe_settings, load_settings
from xpeft_server.version import VERSION

# What a server takes to close, after the time to drain.
CLOSING_SECONDS = 1


def test_pods_are_as_the_restricted_standard_wants_them_and_run_as_the_images_user(
    installation: Any, project_root: Path
) -> None:
    spec, mine = installation.pod, installation.container["securityContext"]
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert mine == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & spec.keys()
    assert all("hostPath" not in volume for volume in spec["volumes"])
    assert spec["automountServiceAccountToken"] is False
    user, group = (re.search(rf"--{each} (\d+)", (project_root / "Dockerfile").read_text()) for each in ("uid", "gid"))
    assert user is not None
    assert group is not None
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (int(user[1]), *[int(group[1])] * 2)


def test_whatever_the_image_calls_a_volume_is_one_and_every_mount_has_its_volume(
    installation: Any, project_root: Path
) -> None:
    mounts = {each["mountPath"]: each for each in installation.container["volumeMounts"]}
    image = re.search(r"^VOLUME (\[.*\])$", (project_root / "Dockerfile").read_text(), re.MULTILINE)
    assert image is not None
    assert mounts.keys() >= {*json.loads(image[1]), "/tmp"}  # noqa: S108
    assert {each["name"] for each in mounts.values()} == {each["name"] for each in installation.pod["volumes"]}
    # What is mounted by subPath is never updated.
    assert all("subPath" not in each for each in mounts.values())


def test_the_server_takes_its_environment_and_no_variable_of_it_is_unknown(installation: Any) -> None:
    settings = installation.settings
    known = {each.variable for each in describe_settings()}
    assert {name for name in installation.environment if name.startswith("XPEFT_")} <= known
    assert not is_loopback(settings.host)
    mounted = [Path(each["mountPath"]) for each in installation.container["volumeMounts"] if each.get("readOnly")]
    for file in (settings.api_keys, settings.tenant_limits):
        assert file is None or file.parent in mounted


def test_a_pod_is_not_told_of_services_whose_variables_the_server_would_refuse(installation: Any) -> None:
    told = installation.the("Service")["metadata"]["name"].upper().replace("-", "_") + "_PORT"
    with pytest.raises(SettingsInvalid, match=told):
        load_settings({}, {told: "tcp://10.0.0.1:8000"})
    assert installation.pod["enableServiceLinks"] is False


def test_probes_ask_routes_that_need_no_key_and_a_store_that_is_away_restarts_nothing(
    installation: Any,
) -> None:
    server = installation.container
    asked = {name: server[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: each["path"] for name, each in asked.items()} == {
        "startup": "/health",
        "liveness": "/health",
        "readiness": "/ready",
    }
    assert {each["path"] for each in asked.values()} <= PUBLIC
    assert {each["port"] for each in asked.values()} <= {port["name"] for port in server["ports"]}
    start = server["startupProbe"]
    progress = installation.the("Deployment")["spec"]["progressDeadlineSeconds"]
    assert start["periodSeconds"] * start["failureThreshold"] < progress


def test_a_pod_has_time_to_leave_the_service_and_to_drain_before_it_is_killed(installation: Any) -> None:
    before = installation.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before > 0
    needed = before + installation.settings.drain_seconds + CLOSING_SECONDS
    assert installation.pod["terminationGracePeriodSeconds"] > needed


def test_the_image_has_a_version_and_no_object_has_a_secret_in_it(installation: Any) -> None:
    name, _, tag = installation.container["image"].partition(":")
    assert name == "xpeft-server"
    assert tag in {VERSION, f"{VERSION}-cuda"}
    assert installation.all("Secret") == []
    assert re.findall(r"xp_[A-Za-z0-9_-]{43}|://[^/\s\"]+@|hf_\w+", json.dumps(installation.objects)) == []


def test_a_gpu_is_asked_for_whole_and_a_server_without_one_ends(install: Any) -> None:
    installation = install("single", "gpu")
    assert installation.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert installation.settings.device == "cuda"
